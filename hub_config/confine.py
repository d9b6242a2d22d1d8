"""Give up everything a learner's process must not have. Standard library only: it runs inside the sandbox.

Used by the sandbox's first process and by a server forked from the warm process, so that both end up alike.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Collection
from typing import TypedDict

from hub_config import seccomp

# linux/prctl.h, linux/capability.h, linux/landlock.h
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
PR_SET_CHILD_SUBREAPER, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 47, 4
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_NET_PORT = 1, 2
LANDLOCK_ACCESS_NET_BIND_TCP, LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1, 1

# Of learners' servers (`ports.py`): for nobody else to listen on. Landlock's rules name one port each, so what is
# allowed ends with the last that the kernel itself would choose (ip(7)).
RESERVED_PORTS = range(10000, 20000)
LAST_PORT = 61000

libc = ctypes.CDLL(None, use_errno=True)


class Limits(TypedDict):
    """What one sandbox may use.

    Attributes:
        memory: bytes, of the whole sandbox.
        data: bytes of private memory of one process; 0 is no limit.
        processes: processes and threads of the whole sandbox; 0 is no limit.
        file_size: bytes of one file.
        open_files: of one process.
        cpu_seconds: of one process; a runaway, not a long server, is meant.
        cpus: numbers of the processor cores it may run on.
        shared_memory_files: whether memfd_create works.
        port: of the learner's server, the only reserved one that it may listen on; 0 for none.
        closed_ports: others that it may not listen on.
    """

    memory: int
    data: int
    processes: int
    file_size: int
    open_files: int
    cpu_seconds: int
    cpus: list[int]
    shared_memory_files: bool
    port: int
    closed_ports: list[int]


def prctl(option: int, *arguments: int) -> int:
    """Ask the kernel: prctl of section 2.

    Raises:
        OSError: as the kernel says.
    """
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    result = int(libc.prctl(option, *padded))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def set_limits(limits: Limits) -> None:
    """Limits of the calling process, inherited by all it starts."""
    table = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: limits["processes"] or resource.RLIM_INFINITY,
        resource.RLIMIT_FSIZE: limits["file_size"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_DATA: limits["data"] or resource.RLIM_INFINITY,
        resource.RLIMIT_MEMLOCK: 8 << 20,
        resource.RLIMIT_MSGQUEUE: 1 << 16,
    }
    for kind, value in table.items():
        hard = resource.getrlimit(kind)[1]
        lower = (
            value if hard == resource.RLIM_INFINITY else hard if value == resource.RLIM_INFINITY else min(value, hard)
        )
        resource.setrlimit(kind, (lower, lower))
    if limits["cpus"]:
        os.sched_setaffinity(0, limits["cpus"])


def go_first_when_memory_runs_out() -> None:
    """Should the machine run out of memory, learners' processes go before the platform's."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def drop_privileges(uid: int, gid: int, shared_memory_files: bool) -> None:
    """Become that user, without capabilities or a way to new ones, behind the system call filter.

    Raises:
        OSError: any of it failed; the caller must not go on.
    """
    if _effective_capabilities():
        with open("/proc/sys/kernel/cap_last_cap") as file:
            last = int(file.read())
        for capability in range(last + 1):
            prctl(PR_CAPBSET_DROP, capability)
    if os.geteuid() != uid:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    _clear_capabilities()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    _filter_system_calls(shared_memory_files)
    if _effective_capabilities() or os.getresuid() != (uid, uid, uid):
        raise PermissionError("privileges are still there")


def landlock_version() -> int:
    """What this kernel can: 4 and more has ports, 6 and more abstract sockets; below 1 it has none of it."""
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    return int(version)


def confine_sockets(own: int, closed: Collection[int]) -> bool:
    """Keep others' abstract Unix sockets out of reach, and their TCP ports for them (Landlock).

    A program that could listen on the port of a server that has just died would be shown its owner's cookies.

    Args:
        own: a reserved port that may be listened on; 0 for none.
        closed: ports that may not, besides the reserved ones.

    Returns:
        False where the kernel can't: ports from Linux 6.7 on, abstract sockets from 6.12 on.
    """
    version = landlock_version()
    if version < 4:
        return False
    scoped = LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET if version >= 6 else 0
    size = 24 if version >= 6 else 16
    attributes = ctypes.create_string_buffer(struct.pack("<QQQ", 0, LANDLOCK_ACCESS_NET_BIND_TCP, scoped), 24)
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    try:
        rule = (ctypes.c_uint64 * 2)(LANDLOCK_ACCESS_NET_BIND_TCP, 0)
        arguments = (LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_NET_PORT, rule, 0)
        for rule[1] in allowed_ports(own, closed):
            if libc.syscall(*arguments):
                return False
        return int(libc.syscall(LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))) == 0
    finally:
        os.close(ruleset)


def allowed_ports(own: int, closed: Collection[int]) -> list[int]:
    """Where a learner's programs may listen; 0 is any that the kernel chooses.

    Example:
        >>> ports = allowed_ports(12345, [8123])
        >>> [port in ports for port in (0, 8080, 12345, 45000)], [port in ports for port in (22, 8123, 12346, 61500)]
        ([True, True, True, True], [False, False, False, False])
    """
    free = (*range(1024, RESERVED_PORTS.start), *range(RESERVED_PORTS.stop, LAST_PORT))
    return [0, *([own] if own else []), *(port for port in free if port not in closed)]


def _effective_capabilities() -> int:
    with open("/proc/thread-self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))


def _clear_capabilities() -> None:
    header = ctypes.create_string_buffer(struct.pack("<II", CAPABILITY_VERSION_3, 0), 8)
    if libc.capset(header, ctypes.create_string_buffer(bytes(24), 24)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _filter_system_calls(shared_memory_files: bool) -> None:
    code = seccomp.program(shared_memory_files=shared_memory_files)
    if code is None:
        return
    body = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: unsigned short, padding, pointer.
    description = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(body)), 16)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(description))
