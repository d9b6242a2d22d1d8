"""The system calls that no learner's program needs, as a classic BPF program for seccomp(2).

A list of what is denied, not of what is allowed: notebooks run anything, and what they run must not break. Denied is
what could change mounts, namespaces, the clock or the kernel, what enlarges the kernel's surface most (io_uring, bpf,
userfaultfd), and memory that no limit sees (memfd). Standard library only: it runs inside the sandbox, before anything.

Sources: seccomp(2); linux/bpf_common.h; linux/seccomp.h; the kernel's syscall tables.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence

# Name: (x86_64, aarch64); None where the architecture has none.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
# Answered "no such call", so that programs and the C library fall back to what they did before it existed.
ABSENT: dict[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),  # its flags are in memory, where a filter can't look; clone's are looked at
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
}
# These make namespaces when their first argument has one of the flags below.
CLONE, UNSHARE = (56, 220), (272, 97)
# CLONE_NEW: TIME, NS, CGROUP, UTS, IPC, USER, PID, NET (linux/sched.h).
NAMESPACES = 0x80 | 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
CSIGNAL = 0xFF  # clone keeps the exit signal in the low byte, so CLONE_NEWTIME means nothing there

# TCP under other names, which Landlock's rules for ports don't see.
SOCKET, AF_SMC, IPPROTO_SMC, IPPROTO_MPTCP = (41, 198), 43, 256, 262

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
X32 = 0x40000000

# BPF opcodes and seccomp's answers.
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
# Offsets in struct seccomp_data; both architectures are little-endian.
NUMBER, ARCH, FIRST_ARGUMENT, THIRD_ARGUMENT = 0, 4, 16, 32


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def program(machine: str | None = None, *, shared_memory_files: bool = False) -> bytes | None:
    """The filter, as an array of `struct sock_filter`; None on an architecture it doesn't know.

    Args:
        machine: as `platform.machine()` says.
        shared_memory_files: let memfd_create through (GPU drivers use it).

    Example:
        >>> len(program("x86_64")) % 8, program("riscv64")
        (0, None)
    """
    if (machine or platform.machine()) not in ARCHITECTURES:
        return None
    column, arch = ARCHITECTURES[machine or platform.machine()]

    def numbers(table: dict[str, tuple[int | None, int | None]], but: Sequence[str] = ()) -> list[int]:
        return sorted(n for name, both in table.items() if name not in but and (n := both[column]) is not None)

    deny, absent = _step(RETURN, ERRNO | errno.EPERM), _step(RETURN, ERRNO | errno.ENOSYS)
    steps = [_step(LOAD, ARCH), _step(EQUAL, arch, 1, 0), absent, _step(LOAD, NUMBER)]
    if column == 0:
        steps += [_step(AT_LEAST, X32, 0, 1), absent]
    for number in numbers(DENIED):
        steps += [_step(EQUAL, number, 0, 1), deny]
    for number in numbers(ABSENT, but=["memfd_create"] if shared_memory_files else ()):
        steps += [_step(EQUAL, number, 0, 1), absent]
    for numbers_of, flags in ((CLONE, NAMESPACES & ~CSIGNAL), (UNSHARE, NAMESPACES)):
        steps += [
            _step(EQUAL, numbers_of[column], 0, 4),
            _step(LOAD, FIRST_ARGUMENT),
            _step(ANY_BIT, flags, 0, 1),
            deny,
        ]
        steps += [_step(RETURN, ALLOW)]
    steps += [
        _step(EQUAL, SOCKET[column], 0, 6),
        _step(LOAD, FIRST_ARGUMENT),
        _step(EQUAL, AF_SMC, 3, 0),
        _step(LOAD, THIRD_ARGUMENT),
        _step(EQUAL, IPPROTO_SMC, 1, 0),
        _step(EQUAL, IPPROTO_MPTCP, 0, 1),
        _step(RETURN, ERRNO | errno.EPROTONOSUPPORT),
    ]
    return b"".join([*steps, _step(RETURN, ALLOW)])
