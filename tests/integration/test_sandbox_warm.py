"""Warm servers: forked into the sandbox, with no more privileges than those that were exec'ed there."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_config import bubblewrap, records, warm, zygote
from hub_config.warm import WarmPool
from kpaas_lab.errors import SettingsError
from tests.fixtures.sandboxes import Learner, installation
from tests.waiting import until

PYTHON = "/usr/bin/python3"  # only its name counts: a warm server is a fork


@pytest.fixture
def learners(tmp_path: Path) -> Iterator[tuple[Learner, Learner]]:
    try:
        bubblewrap.mode()
    except SettingsError as error:
        pytest.skip(str(error))
    with installation(tmp_path / "state") as both:
        yield both


@pytest.fixture
def pool(learners: tuple[Learner, Learner]) -> Iterator[WarmPool]:
    pool = WarmPool(learners[0].state / "log" / "warm.log", modules=("tornado.web", "decimal"))
    pool.start()
    until(pool.ready, 30, "warm process", log=pool.log)
    yield pool
    pool.close()


# Everything that makes the two ways of starting comparable, printed by the server itself.
CONFESS = """
import json, os, resource, sys
def read(path):
    with open(path) as file: return file.read()
status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
print(json.dumps({
    "status": {name: status[name].strip() for name in status
        if name.startswith(("Cap", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups", "Sig", "Shd", "NSpid", "Umask"))},
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "LIMIT_" in name},
    "uid_map": read("/proc/self/uid_map"), "gid_map": read("/proc/self/gid_map"),
    "descriptors": {n: os.readlink(f"/proc/self/fd/{n}").split(":")[0] for n in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{n}")},
    "mounts": [line.split()[4:6] for line in read("/proc/self/mountinfo").splitlines()],
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "cores": sorted(os.sched_getaffinity(0)), "oom": read("/proc/self/oom_score_adj"),
    "environment": dict(os.environ), "cwd": os.getcwd(), "root": os.listdir("/"),
    "session": os.getsid(0) == os.getpid(),
    "abstract": __import__("socket").socket(1).connect_ex("\\0kpaas-lab-warm-test"),
    "warm": "tornado.web" in sys.modules,
}))
"""


def confession(learner: Learner, pool: WarmPool | None) -> dict[str, object]:
    record = learner.start(PYTHON if pool else "/usr/bin/python3", "-c", CONFESS, env={"TOKEN": "x"}, warm=pool)
    learner.finish(record)
    answer = json.loads(learner.printed().splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def test_no_more_privileges_than_a_server_that_was_executed(learners: tuple[Learner, Learner], pool: WarmPool) -> None:
    import socket

    ann, _bob = learners
    with socket.socket(socket.AF_UNIX) as outside:
        outside.bind("\0kpaas-lab-warm-test")
        outside.listen()
        cold, forked = confession(ann, None), confession(ann, pool)
    assert forked.pop("warm")
    assert not cold.pop("warm")
    for one in (cold, forked):
        # With its own exec'ed interpreter a process has one locale variable more than one without.
        one["environment"].pop("LC_CTYPE", None)  # type: ignore[attr-defined]
        status = one["status"]
        assert isinstance(status, dict)
        bounding = int(status.pop("CapBnd"), 16)
        assert bounding == 0 or one is cold  # a fork gives up that, too, where bubblewrap can't
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == 0
    assert forked == cold


def test_it_sees_only_its_own_sandbox(learners: tuple[Learner, Learner], pool: WarmPool) -> None:
    ann, bob = learners
    bob.start("/bin/sleep", "60")
    record = ann.start(
        PYTHON,
        "-c",
        f"import os; print(sorted(n for n in os.listdir('/proc') if n.isdigit()), sorted(os.listdir('/home')),"
        f" os.path.exists({str(ann.state)!r}), flush=True)\n"
        f"for path in ('/proc/1/root', '/proc/self/root{ann.state}', '/proc/self/exe'):\n"
        f"    try: print(os.listdir(path))\n    except OSError as error: print('refused')",
        warm=pool,
    )
    ann.finish(record)
    assert ann.printed().splitlines()[0] == "['1', '2'] ['.own', 'ann'] False"
    assert ann.printed().count("refused") == 3


def memory_holds(pid: int, needle: bytes) -> bool:
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            area, rights = line.split()[:2]
            if not rights.startswith("rw") or "[v" in line:
                continue
            start, end = (int(part, 16) for part in area.split("-"))
            memory.seek(start)
            try:
                if needle in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False


def test_the_warm_process_never_learns_a_secret(learners: tuple[Learner, Learner], pool: WarmPool) -> None:
    """What it had in memory, the next learner's server would have."""
    ann, bob = learners
    os.environ["HUB_SECRET"] = "SECRET-OF-" + "THE-HUB"
    ann.start(
        PYTHON, "-c", "import time; print('up', flush=True); time.sleep(60)", env={"T": "TOKEN-OF-" + "ANN"}, warm=pool
    )
    ann.until_printed("up")
    process = pool._process
    assert process is not None
    assert not memory_holds(process.pid, b"TOKEN-OF-" + b"ANN")
    assert not memory_holds(process.pid, b"SECRET-OF-" + b"THE-HUB")
    assert memory_holds(process.pid, b"hub_config")  # so it does look
    code = """
import os
found = b"TOKEN-OF-" + b"ANN" in b"".join(open("/proc/self/environ", "rb").read().split())
print("found" if found else "nothing", flush=True)
"""
    bob.finish(bob.start(PYTHON, "-c", code, warm=pool))
    assert bob.printed().split() == ["nothing"]


def test_two_learners_get_different_random_numbers(learners: tuple[Learner, Learner], pool: WarmPool) -> None:
    code = "import random, secrets, uuid; print(random.random(), secrets.token_hex(8), uuid.uuid4())"
    for learner in learners:
        learner.finish(learner.start(PYTHON, "-c", code, warm=pool))
    ann, bob = (learner.printed().split() for learner in learners)
    assert not set(ann) & set(bob)


def test_a_warm_server_ends_whole_and_leaves_no_zombie(learners: tuple[Learner, Learner], pool: WarmPool) -> None:
    ann, _bob = learners
    code = "import os, time; os.fork(); print('up', flush=True); time.sleep(60)"
    record = ann.start(PYTHON, "-c", code, warm=pool)
    until(lambda: ann.printed().count("up") == 2, 10, "two processes", log=ann.log)
    first = namespaces(str(record.pid))
    assert first["pid"] != namespaces("self")["pid"]
    members = [
        name for name in os.listdir("/proc") if name.isdigit() and _namespace(name) == _namespace(str(record.pid))
    ]
    assert len(members) == 3
    assert all(namespaces(name) == first for name in members)
    inside = os.stat(f"/proc/{record.pid}/ns/pid").st_ino
    records.stop(record, 5)
    assert records.poll(record) is not None
    process = pool._process
    assert process is not None

    def children() -> str:
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()

    until(lambda: not children(), 10, "end of all children of the warm process", log=children)
    assert not [name for name in os.listdir("/proc") if name.isdigit() and _namespace(name) == inside]


def namespaces(pid: str) -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in zygote.NAMESPACES}


def _namespace(pid: str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0


def test_the_sandbox_ends_with_a_warm_server(learners: tuple[Learner, Learner], pool: WarmPool) -> None:
    ann, _bob = learners
    ann.finish(ann.start(PYTHON, "-c", "print('short')", warm=pool), timeout=10)
    assert "short" in ann.printed()
    ann.finish(ann.start(PYTHON, "-c", "raise SystemExit('wrong')", warm=pool), timeout=10)
    assert "wrong" in ann.printed()


def test_without_a_warm_process_a_server_starts_the_ordinary_way(
    learners: tuple[Learner, Learner], pool: WarmPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the order, and started again for the next."""
    ann, _bob = learners
    monkeypatch.setattr(warm, "RETRY_SECONDS", 0.0)
    process = pool._process
    assert process is not None
    process.kill()
    process.wait()
    assert not confession(ann, pool)["warm"]
    until(pool.ready, 30, "warm process again", log=pool.log)
    assert confession(ann, pool)["warm"]


def test_a_warm_process_that_dies_over_an_order(learners: tuple[Learner, Learner], pool: WarmPool) -> None:
    """The order is sent and nobody comes: the sandbox sees the closed socket and starts the server itself."""
    ann, _bob = learners
    process = pool._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    record = ann.start(PYTHON, "-c", CONFESS, warm=pool)
    process.kill()
    ann.finish(record)
    assert not json.loads(ann.printed().splitlines()[-1])["warm"]


def test_servers_outlive_the_warm_process_and_can_be_stopped(learners: tuple[Learner, Learner], pool: WarmPool) -> None:
    ann, _bob = learners
    record = ann.start(PYTHON, "-c", "import time; print('up', flush=True); time.sleep(60)", warm=pool)
    ann.until_printed("up")
    pool.close()
    assert records.poll(record) is None
    records.stop(record, 5)
    assert records.poll(record) is not None


def test_a_command_that_is_no_python_is_executed(learners: tuple[Learner, Learner], pool: WarmPool) -> None:
    ann, _bob = learners
    assert ann.finish(ann.start("/bin/sh", "-c", "echo shell; exit 3", warm=pool)) == 3
    assert ann.printed() == "shell\n"


def test_memory_of_a_warm_server_is_limited_too(learners: tuple[Learner, Learner], pool: WarmPool) -> None:
    ann, _bob = learners
    code = "kept = []\nwhile True: kept.append(bytearray(b'x') * (16 << 20))"
    ann.finish(ann.start(PYTHON, "-c", code, warm=pool))
    assert '"reason": "memory"' in (ann.home / ".kpaas-lab" / "events.log").read_text()
