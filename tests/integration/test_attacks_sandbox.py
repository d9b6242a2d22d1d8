"""What a hostile learner tries from inside their sandbox. Each attack runs for real, and each must fail.

ann attacks; bob, in a sandbox of his own, and the platform are the victims.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_config import bubblewrap, confine, homes, records, sandbox
from kpaas_lab.errors import SettingsError
from kpaas_lab.installation.ports import is_free
from tests.fixtures.ports import free_port
from tests.fixtures.sandboxes import PROFILE, Learner, installation
from tests.waiting import until

SECRET = "SECRET-OF-THE-PLATFORM"
BOBS = "BOBS-OWN-WORK"


@pytest.fixture
def learners(tmp_path: Path) -> Iterator[tuple[Learner, Learner]]:
    try:
        bubblewrap.mode()
    except SettingsError as error:
        pytest.skip(str(error))
    with installation(tmp_path / "state") as both:
        yield both


@pytest.fixture
def ann(learners: tuple[Learner, Learner]) -> Learner:
    return learners[0]


@pytest.fixture
def bob(learners: tuple[Learner, Learner]) -> Learner:
    """Bob at work, with a file, a process, a secret in its environment and memory in /dev/shm."""
    bob = learners[1]
    bob.python(
        f"""
        import os, time
        open("work", "w").write("{BOBS}"); os.chmod("work", 0o666)
        open("/tmp/work", "w").write("{BOBS}"); open("/dev/shm/work", "w").write("{BOBS}")
        print("working"); time.sleep(120)
        """,
        env={"JUPYTERHUB_API_TOKEN": BOBS},
    )
    bob.until_printed("working")
    return bob


def host_pid(learner: Learner) -> int:
    record = records.load(learner.record)
    assert record is not None
    assert records.poll(record) is None
    return record.pid


def alive(learner: Learner) -> bool:
    record = records.load(learner.record)
    return record is not None and records.poll(record) is None


# A helper inside the sandbox: what happens when that is tried.
TRY = """
import ctypes, errno, json, os, signal, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, do):
    try:
        print(what, "->", repr(do()), flush=True)
    except OSError as error:
        print(what, "-> refused", errno.errorcode.get(error.errno), flush=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        number = ctypes.get_errno(); raise OSError(number, name)
    return "done"
def syscall(number, *arguments):
    return call("syscall", number, *arguments)
"""


def attack(learner: Learner, code: str, **options: object) -> str:
    import textwrap

    return learner.run(TRY + textwrap.dedent(code), **options)


def test_reading_anothers_files(ann: Learner, bob: Learner) -> None:
    printed = attack(
        ann,
        f"""
        for path in ("/home/bob/work", "{bob.home}/work", "/tmp/work", "/dev/shm/work", "../bob/work"):
            attempt(path, lambda: open(path).read())
        attempt("/home", lambda: sorted(os.listdir("/home")))
        """,
    )
    assert BOBS not in printed
    assert printed.count("refused") == 5
    assert "['.own', 'ann']" in printed, "the first is a link to the second"


def test_reading_the_platforms_files(ann: Learner, bob: Learner) -> None:
    printed = attack(
        ann,
        f"""
        state = "{ann.state}"
        for root in ("", "/proc/1/root", "/proc/self/root", "/proc/1/cwd/../..", "/proc/{host_pid(bob)}/root"):
            for name in ("secrets.json", "hub/jupyterhub.sqlite", "run/sandboxes/bob.json", "log/bob.log"):
                attempt(root + name, lambda: open(f"{{root}}{{state}}/{{name}}").read())
        for path in ("/etc/shadow", "/proc/1/environ", "/proc/1/mem", "/proc/kcore", "/proc/1/maps"):
            attempt(path, lambda: open(path, "rb").read(100))
        environments = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try: environments.append(open(f"/proc/{{pid}}/environ").read())
            except OSError: pass
        print(environments)
        """,
    )
    assert SECRET not in printed
    assert BOBS not in printed
    assert printed.count("refused") == 25


def test_the_state_folder_stays_hidden_below_a_readable_one(ann: Learner) -> None:
    """An operator who shows a folder around the state shows nothing of the state."""
    record = sandbox.start(
        sandbox.Sandbox(
            name="ann",
            home=ann.home,
            profile=PROFILE,
            env={"PATH": "/usr/bin:/bin"},
            command=["/bin/sh", "-c", f"ls -A {ann.state}; cat {ann.state}/secrets.json; echo end"],
            record=ann.record,
            log=ann.log,
            readable=[ann.state.parent],
        )
    )
    ann.finish(record)
    assert SECRET not in ann.printed()
    assert "secrets.json\n" not in ann.printed().replace("No such file", "")


def test_seeing_killing_and_tracing_anothers_processes(ann: Learner, bob: Learner) -> None:
    victim = host_pid(bob)
    printed = attack(
        ann,
        f"""
        print("seen", sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
        attempt("kill", lambda: os.kill({victim}, 9))
        attempt("attach", lambda: call("ptrace", 16, {victim}, 0, 0))
        attempt("attach init", lambda: call("ptrace", 16, 1, 0, 0))
        attempt("pidfd", lambda: os.pidfd_open({victim}))
        attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, {victim}, 19))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        attempt("all", lambda: os.kill(-1, signal.SIGTERM))
        """,
    )
    assert printed.count("refused") == 6
    seen = json.loads(next(line for line in printed.splitlines() if line.startswith("seen"))[5:])
    assert max(seen) < 100
    assert len(seen) <= 3
    assert alive(bob)


def test_stopping_what_watches_the_sandbox(ann: Learner) -> None:
    """The first process inside polices memory: it can be neither killed nor stopped nor read."""
    printed = attack(
        ann,
        """
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGHUP, signal.SIGUSR1, signal.SIGSEGV):
            os.kill(1, number)
        attempt("memory", lambda: open("/proc/1/mem", "r+b"))
        attempt("descriptors", lambda: os.listdir("/proc/1/fd"))
        print("state", open("/proc/1/stat").read().split()[2])
        """,
    )
    assert printed.count("refused") == 2
    assert "state S" in printed or "state R" in printed


def test_writing_outside_the_home(ann: Learner) -> None:
    # A clone under /tmp lies in the sandbox's own /tmp, with what is shown of it mounted there.
    root = [] if str(bubblewrap.ROOT).startswith("/tmp/") else [str(bubblewrap.ROOT)]
    printed = attack(
        ann,
        f"""
        import kpaas_lab
        paths = ["/", "/etc", "/usr", "/bin", "/home", "/root", "/dev", "/var", "/proc", "/sys"]
        paths += [sys.prefix, os.path.dirname(kpaas_lab.__file__), *{root!r}]
        for path in paths:
            attempt(path, lambda: open(f"{{path}}/planted", "w"))
        attempt("passwd", lambda: open("/etc/passwd", "a"))
        for path in ("kernel/core_pattern", "kernel/hostname", "vm/overcommit_memory", "user/max_user_namespaces"):
            attempt(path, lambda: open(f"/proc/sys/{{path}}", "r+"))
        attempt("sysrq", lambda: open("/proc/sysrq-trigger", "w"))
        attempt("library", lambda: open(kpaas_lab.__file__, "a"))
        """.replace(
            "import kpaas_lab", f"sys.path.insert(0, {str(bubblewrap.ROOT)!r}); import kpaas_lab.errors, kpaas_lab"
        ),
    )
    assert "-> <" not in printed
    assert printed.count("refused") == 12 + len(root) + 1 + 4 + 1 + 1
    assert not (bubblewrap.ROOT / "planted").exists()


def test_more_privileges(ann: Learner) -> None:
    printed = attack(
        ann,
        """
        attempt("root", lambda: os.setresuid(0, 0, 0))
        attempt("groups", lambda: os.setgroups([0]))
        attempt("mount", lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None))
        attempt("remount", lambda: call("mount", b"none", b"/", None, 32, None))
        attempt("umount", lambda: call("umount2", b"/dev", 2))
        attempt("chroot", lambda: os.chroot("/tmp"))
        for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000, 0x80):
            attempt(f"unshare {flag:#x}", lambda: call("unshare", flag))
        attempt("setns", lambda: call("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), 0))
        attempt("hostname", lambda: socket.sethostname("x"))
        attempt("clock", lambda: time.clock_settime(time.CLOCK_REALTIME, 0))
        attempt("device", lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(254, 0)))
        attempt("bpf", lambda: syscall(321 if os.uname().machine == "x86_64" else 280, 0, 0, 0))
        attempt("io_uring", lambda: syscall(425, 8, 0))
        attempt("keys", lambda: syscall(250 if os.uname().machine == "x86_64" else 219, 0, -3, 1))
        attempt("memfd", lambda: os.memfd_create("hidden"))
        for line in open("/proc/self/status"):
            if line.startswith(("Cap", "NoNewPrivs", "Seccomp:")): print(line.strip())
        """,
    )
    assert printed.count("refused") == 6 + 8 + 8
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert f"{name}:\t{'0' * 16}" in printed
    assert "NoNewPrivs:\t1" in printed
    assert "Seccomp:\t2" in printed


@pytest.mark.parametrize("way", ["clone", "clone3", "int80"])
def test_a_nested_user_namespace(ann: Learner, way: str) -> None:
    """By clone, by clone3 whose flags no filter sees, and by the 32-bit entry."""
    code = {
        "clone": "attempt('clone', lambda: syscall(56 if x else 220, 0x10000011, 0, 0, 0, 0))",
        "clone3": "flags = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)\n"
        "attempt('clone3', lambda: syscall(435, ctypes.byref(flags), 64))",
        "int80": """
attempt("32 bits", lambda: subprocess.run([sys.executable, "-c", '''
import ctypes, mmap
code = bytes.fromhex("53 b8 36 01 00 00 bb 00 00 00 10 cd 80 5b c3")
memory = mmap.mmap(-1, 4096, prot=7); memory.write(code)
result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
if result >= 0: print("NESTED")
''']).returncode)
print("refused")""",
    }[way]
    if way == "int80" and os.uname().machine != "x86_64":
        pytest.skip("only x86_64 has a 32-bit entry")
    printed = attack(ann, f"x = os.uname().machine == 'x86_64'\n{code}")
    assert "refused" in printed
    assert "NESTED" not in printed


def test_a_setuid_program_planted_in_the_home(ann: Learner) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to plant a setuid-root program")
    uid, _gid = homes.own(ann.home, "ann")
    shutil.copy("/usr/bin/id", ann.home / "id")
    (ann.home / "id").chmod(0o4755)
    ann.finish(ann.start("/home/ann/id", "-u"))
    assert ann.printed().split() == [str(uid)]


def test_devices(ann: Learner) -> None:
    printed = attack(
        ann,
        """
        print(sorted(os.listdir("/dev")))
        for name in ("mem", "kmsg", "vda", "sda", "nvme0n1", "fuse", "kvm", "net/tun", "loop-control", "userfaultfd"):
            attempt(name, lambda: os.open(f"/dev/{name}", os.O_RDWR))
        """,
    )
    assert printed.count("refused") == 10
    shown = set(eval(printed.splitlines()[0]))
    allowed = "console core fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert shown <= set(allowed.split())


def test_open_descriptors_of_the_platform(ann: Learner) -> None:
    """Nothing that the platform had open is handed in."""
    printed = attack(
        ann,
        'print([os.readlink(f"/proc/self/fd/{n}") for n in range(3, 4096) if os.path.exists(f"/proc/self/fd/{n}")])',
    )
    assert printed.split() == ["[]"]


def events(learner: Learner) -> list[dict[str, object]]:
    path = learner.home / ".kpaas-lab" / "events.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_one_process_with_too_much_memory(ann: Learner) -> None:
    """It goes, the server stays, and the learner is told what and why."""
    printed = attack(
        ann,
        """
        hungry = subprocess.run([sys.executable, "-c", '''
        kept = []
        while True: kept.append(bytearray(b"x") * (16 << 20))
        '''.replace("        ", "")])
        print("hungry ended with", hungry.returncode); print("the server is here")
        """,
    )
    assert "hungry ended with -9" in printed
    assert "the server is here" in printed
    (event,) = events(ann)
    assert (event["event"], event["reason"], event["limit_mib"]) == ("killed", "memory", 512)


def test_a_server_that_is_itself_too_big(ann: Learner) -> None:
    """Nothing else is worth ending: the server goes, and its sandbox with it."""
    record = ann.python("kept = []\nwhile True: kept.append(bytearray(b'x') * (16 << 20))")
    assert ann.finish(record) == 128 + 9
    (event,) = events(ann)
    assert event["pid"] == 2


def test_many_processes_with_too_much_memory(ann: Learner) -> None:
    printed = attack(
        ann,
        """
        code = "kept = bytearray(b'x') * (150 << 20); print('full', flush=True); import time; time.sleep(60)"
        hungry = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(6)]
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and sum(one.poll() is None for one in hungry) > 3: time.sleep(0.05)
        print("left", sum(one.poll() is None for one in hungry))
        """,
        timeout=60,
    )
    assert "left 3" in printed or "left 2" in printed
    assert events(ann)


def test_memory_hidden_from_the_one_who_counts(ann: Learner) -> None:
    """Not dumpable, so that its maps can't be read; a session of its own; a name like the server's."""
    printed = attack(
        ann,
        """
        hidden = os.fork()
        if not hidden:
            os.setsid(); libc.prctl(4, 0); libc.prctl(15, b"python")
            kept = []
            while True: kept.append(bytearray(b"x") * (16 << 20))
        print("hidden ended with", os.waitstatus_to_exitcode(os.waitpid(hidden, 0)[1]))
        """,
    )
    assert "hidden ended with -9" in printed


def test_filling_what_lives_in_memory(ann: Learner) -> None:
    printed = attack(
        ann,
        """
        def fill(path):
            with open(path, "wb", buffering=0) as file:
                while True: file.write(bytes(4 << 20))
        for path in ("/tmp/full", "/dev/shm/full", "/run/full"):
            attempt(path, lambda: fill(path))
        facts = [os.statvfs(path) for path in ("/tmp", "/dev/shm", "/run")]
        print("used", sum((fact.f_blocks - fact.f_bfree) * fact.f_frsize for fact in facts) >> 20)
        print("the server is here")
        """,
    )
    assert printed.count("refused ENOSPC") == 3
    assert "the server is here" in printed
    used = int(next(line for line in printed.splitlines() if line.startswith("used")).split()[1])
    assert used <= 512 // 4 * 2 + 64


def test_one_file_that_fills_the_disk(ann: Learner) -> None:
    printed = attack(
        ann,
        f"""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        file = open("big", "wb")
        attempt("big", lambda: os.ftruncate(file.fileno(), {sandbox.FILE_SIZE + 1}))
        """,
    )
    assert "refused EFBIG" in printed


def test_a_fork_bomb(ann: Learner, bob: Learner) -> None:
    began = time.monotonic()
    record = ann.python("""
        import os, time
        print("boom", flush=True)
        while True:
            try: os.fork()
            except OSError: print("enough", flush=True); time.sleep(0.2)
    """)
    ann.until_printed("enough")
    inside = os.stat(f"/proc/{record.pid}/ns/pid").st_ino
    assert len(members(inside)) <= PROFILE.processes + 1
    assert alive(bob)
    records.stop(record, 0.2)
    until(lambda: not members(inside), 10, "end of the bomb")
    assert time.monotonic() - began < 60


def members(namespace: int) -> list[int]:
    """Pids, as seen from outside, of the living processes in that pid namespace."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            ended = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if os.stat(f"/proc/{name}/ns/pid").st_ino == namespace and not ended:
                found.append(int(name))
        except OSError:
            continue
    return found


def test_leaving_a_daemon_behind(ann: Learner) -> None:
    record = ann.python("""
        import os, signal, time
        if not os.fork():
            os.setsid()
            if not os.fork():
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
                print("daemon", flush=True)
                while True: time.sleep(1)
            os._exit(0)
        time.sleep(60)
    """)
    ann.until_printed("daemon")
    inside = os.stat(f"/proc/{record.pid}/ns/pid").st_ino
    assert len(members(inside)) == 3
    records.stop(record, 5)
    assert not members(inside)


def test_ignoring_the_end(ann: Learner) -> None:
    record = ann.python("""
        import signal, time
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(number, signal.SIG_IGN)
        print("here", flush=True)
        while True: time.sleep(1)
    """)
    ann.until_printed("here")
    records.stop(record, 0.2)
    assert records.poll(record) is not None
    assert not os.path.exists(f"/proc/{record.pid}/root/home")


def test_an_abstract_socket_of_another(ann: Learner, learners: tuple[Learner, Learner]) -> None:
    """Abstract Unix sockets belong to the network namespace, which sandboxes share; Landlock keeps them apart."""
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 12):
        pytest.skip("Linux before 6.12 can't scope abstract sockets")
    bob = learners[1]
    bob.python("""
        import socket, time
        server = socket.socket(socket.AF_UNIX); server.bind("\\0kpaas-lab-test-bob"); server.listen()
        own = socket.socket(socket.AF_UNIX); own.connect("\\0kpaas-lab-test-bob")
        print("listening", flush=True); time.sleep(60)
    """)
    bob.until_printed("listening")
    printed = attack(ann, 'attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\\0kpaas-lab-test-bob"))')
    assert "refused EPERM" in printed


def test_links_planted_before_the_platform_copies(ann: Learner, tmp_path: Path) -> None:
    """The course folder is copied by the platform, as root where it is root, into a home that is the learner's."""
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("untouched")
    source = tmp_path / "course"
    (source / "lesson").mkdir(parents=True)
    (source / "lesson" / "first.ipynb").write_text("{}")
    (source / "read.me").write_text("hello")
    ann.run(f"""
        import os
        os.symlink("{outside}", "courses")
        os.mkdir("course"); os.symlink("{outside}", "course/lesson"); os.symlink("{victim}", "course/read.me")
    """)
    uid = ann.home.stat().st_uid
    assert homes.place_tree(source, ann.home, "courses/ai", uid) == []
    assert homes.place_tree(source, ann.home, "course", uid) == []
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert victim.read_text() == "untouched"
    with pytest.raises(SettingsError):
        homes.place_tree(source, ann.home, "../bob/courses", uid)


def test_links_planted_before_a_home_changes_hands(ann: Learner, tmp_path: Path) -> None:
    """Root gives a home to its learner: what a link in it points to keeps its owner."""
    if os.geteuid() != 0:
        pytest.skip("only root gives homes to learners")
    victim = tmp_path / "victim"
    victim.write_text("root's")
    ann.home.mkdir(parents=True)
    (ann.home / "deep").mkdir()
    (ann.home / "deep" / "link").symlink_to(victim)
    (ann.home / "folder").symlink_to(tmp_path)
    uid, _gid = homes.own(ann.home, "ann")
    assert victim.stat().st_uid == tmp_path.stat().st_uid == 0
    assert (ann.home / "deep").stat().st_uid == uid
    assert (ann.home / "deep" / "link").lstat().st_uid == uid


def test_a_log_that_is_a_link(ann: Learner, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    ann.log.parent.mkdir(parents=True)
    ann.log.symlink_to(victim)
    with pytest.raises(OSError):  # noqa: PT011
        sandbox.start(
            sandbox.Sandbox(
                name="ann",
                home=ann.home,
                profile=PROFILE,
                env={},
                command=["/bin/true"],
                record=ann.record,
                log=ann.log,
            )
        )
    assert victim.read_text() == "untouched"


def test_secrets_in_the_list_of_processes(ann: Learner) -> None:
    """What is handed to a learner's server shows in no command line on the machine."""
    record = ann.python("print('here'); import time; time.sleep(30)", env={"JUPYTERHUB_API_TOKEN": "TOKEN-OF-ANN"})
    ann.until_printed("here")
    listed = subprocess.run(["ps", "-e", "-ww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert "TOKEN-OF-ANN" not in listed
    records.stop(record, 0.2)


LISTEN = """
import errno, socket
SMC, MPTCP = 256, 262
def listen(port, family=socket.AF_INET, protocol=0, address="127.0.0.1"):
    try:
        one = socket.socket(family, socket.SOCK_STREAM, protocol)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind((address, port))
        one.listen()
        return "listens"
    except OSError as error:
        return "refused" if error.errno in (errno.EACCES, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT) else str(error)
"""


@pytest.mark.skipif(confine.landlock_version() < 4, reason="Linux before 6.7 has no rules for ports")
def test_listening_where_the_platform_or_another_learner_did(ann: Learner) -> None:
    """A server that dies leaves its port; who listens there next would be shown what browsers send to it."""
    closed = free_port()
    own = next(port for port in range(19000, 20000) if is_free(port))
    printed = ann.run(
        LISTEN
        + f"""
others = [port for port in range(10000, 20000, 3) if port != {own}] + [{closed}, 80]
print({{listen(port) for port in others}})
print({{listen({closed}, socket.AF_INET, protocol) for protocol in (SMC, MPTCP)}})
any6 = dict(family=socket.AF_INET6, address="::")
print(listen({closed}, **any6), listen({closed}, protocol=MPTCP, **any6), listen({closed}, 43))
print(listen({own}), listen(0))
""",
        port=own,
        closed_ports=[closed],
    )
    assert printed.splitlines() == ["{'refused'}", "{'refused'}", "refused refused refused", "listens listens"]
