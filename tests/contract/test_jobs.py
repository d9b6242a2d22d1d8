"""What every engine promises of a Job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kpaas_lab.engines.base import Engine
from kpaas_lab.errors import AlreadyExistsError, NoCapacityError, NotFoundError, SettingsError, UnknownSliceError
from kpaas_lab.workloads import Job, Phase, Status
from tests.contract.engines import Bench
from tests.waiting import until

TIMEOUT = 30


def job(bench: Bench, name: str, code: str, **more: Any) -> Job:
    return Job(name=name, command=(bench.python, "-c", code), workdir=bench.home, **more)


def ended(engine: Engine, name: str) -> Status:
    def status() -> Status | None:
        found = engine.get(name)
        return found if found.phase.ended else None

    return until(status, TIMEOUT, f"end of {name}", log=lambda: "\n".join(engine.logs(name)))


def running(engine: Engine, name: str, line: str) -> Status:
    until(lambda: line in list(engine.logs(name)), TIMEOUT, f"{line!r}", log=lambda: "\n".join(engine.logs(name)))
    return engine.get(name)


def test_a_job_from_start_to_end(bench: Bench, engine: Engine) -> None:
    before = datetime.now(UTC)
    created = engine.create(job(bench, "first", "print('one'); print('둘')", labels={"run": "first"}))
    assert (created.name, created.kind, created.slice) == ("first", "Job", "cpu")
    assert list(engine.logs("first", follow=True)) == ["one", "둘"]
    status = ended(engine, "first")
    assert (status.phase, status.exit_code, status.reason, status.labels) == (
        Phase.SUCCEEDED,
        0,
        "",
        {"run": "first"},
    )
    assert status.started is not None
    assert status.finished is not None
    assert before <= status.created <= status.started <= status.finished


def test_what_a_job_is_told(bench: Bench, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret-of-the-notebook")
    code = "import os; print(os.getcwd()); print(os.environ['X'], os.environ['KPAAS_LAB_NODE_RANK'], "
    code += "os.environ['KPAAS_LAB_NODES'], 'KPAAS_LAB_MASTER' in os.environ, 'JUPYTERHUB_API_TOKEN' in os.environ)"
    engine.create(job(bench, "told", code, env={"X": "x y"}))
    assert list(engine.logs("told", follow=True)) == [str(bench.home), "x y 0 1 False False"]


@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        ("raise ValueError('no')", 1, "Error"),
        ("import sys; sys.exit(3)", 3, "Error"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "Killed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -11, "Killed"),
    ],
)
def test_a_job_that_fails(bench: Bench, engine: Engine, code: str, exit_code: int, reason: str) -> None:
    engine.create(job(bench, "fails", code))
    status = ended(engine, "fails")
    assert (status.phase, status.exit_code, status.reason) == (Phase.FAILED, exit_code, reason)
    assert "fails" in status.message


def test_a_program_that_is_not_there(bench: Bench, engine: Engine) -> None:
    engine.create(Job(name="nothing", command=("/no/such/program",), workdir=bench.home))
    status = ended(engine, "nothing")
    assert (status.phase, status.exit_code) == (Phase.FAILED, 127)
    assert "/no/such/program" in "\n".join(engine.logs("nothing"))


def test_out_of_memory_is_told_apart(bench: Bench, engine: Engine) -> None:
    code = "import mmap; m = mmap.mmap(-1, 400 << 20); print('got it')\nfor i in range(0, len(m), 4096): m[i] = 1\n"
    engine.create(job(bench, "eats", code + "import time; time.sleep(60)", slice="small"))
    status = ended(engine, "eats")
    assert (status.phase, status.reason) == (Phase.FAILED, "OutOfMemory")
    assert "256 MiB" in status.message


def test_a_fork_bomb_is_ended(bench: Bench, engine: Engine) -> None:
    code = """if True:
        import os, time
        while True:
            try:
                if os.fork() == 0 and os.fork() > 0: os._exit(0)  # and disowned
            except OSError:
                time.sleep(0.01)
            time.sleep(0.001)"""
    engine.create(job(bench, "bomb", code))
    status = ended(engine, "bomb")
    assert (status.phase, status.reason) == (Phase.FAILED, "TooManyProcesses")
    assert "64" in status.message


def test_an_allocation_beyond_the_slice_fails_where_it_is_made(bench: Bench, engine: Engine) -> None:
    engine.create(job(bench, "allocates", "big = bytearray(1 << 30)", slice="small"))
    assert ended(engine, "allocates").phase is Phase.FAILED
    assert "MemoryError" in "\n".join(engine.logs("allocates"))


def test_cancel_keeps_record_and_log(bench: Bench, engine: Engine) -> None:
    engine.create(job(bench, "long", "import time; print('on'); time.sleep(600)"))
    running(engine, "long", "on")
    assert engine.cancel("long").phase is Phase.CANCELLED
    assert engine.cancel("long").phase is Phase.CANCELLED
    assert list(engine.logs("long")) == ["on"]


def test_cancel_ends_the_stubborn_and_their_children(bench: Bench, engine: Engine) -> None:
    code = """if True:
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = [sys.executable, "-c", "import os, time; print('child', os.getpid()); time.sleep(600)"]
        subprocess.Popen(child, start_new_session=True)
        time.sleep(600)"""
    engine.create(job(bench, "stubborn", code))
    line = next(iter(engine.logs("stubborn", follow=True)))
    assert engine.cancel("stubborn").phase is Phase.CANCELLED
    pid = int(line.split()[1])
    until(lambda: not _alive(pid), TIMEOUT, "end of the child")


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_delete_is_idempotent_and_frees_the_name(bench: Bench, engine: Engine) -> None:
    engine.create(job(bench, "gone", "import time; time.sleep(600)"))
    engine.delete("gone")
    engine.delete("gone")
    engine.delete("never-was")
    with pytest.raises(NotFoundError):
        engine.get("gone")
    engine.create(job(bench, "gone", "print('again')"))
    assert list(engine.logs("gone", follow=True)) == ["again"]


def test_a_follower_ends_when_the_workload_is_deleted(bench: Bench, engine: Engine) -> None:
    engine.create(job(bench, "followed", "import time; print('on'); time.sleep(600)"))
    seen: list[str] = []
    follower = threading.Thread(target=lambda: seen.extend(engine.logs("followed", follow=True)))
    follower.start()
    running(engine, "followed", "on")
    engine.delete("followed")
    follower.join(TIMEOUT)
    assert not follower.is_alive()
    assert seen == ["on"]


def test_names_are_given_once(bench: Bench, engine: Engine) -> None:
    engine.create(job(bench, "same", "print(1)"))
    with pytest.raises(AlreadyExistsError, match="same"):
        engine.create(job(bench, "same", "print(2)"))
    assert list(engine.logs("same", follow=True)) == ["1"]


def test_two_creators_of_one_name(bench: Bench) -> None:
    results: list[str] = []
    gate = threading.Barrier(4)

    def create(number: int) -> None:
        engine = bench.make()
        gate.wait()
        try:
            engine.create(job(bench, "race", f"print({number})"))
            results.append("created")
        except AlreadyExistsError:
            results.append("taken")

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(results) == ["created", "taken", "taken", "taken"]
    assert len(list(bench.make().logs("race", follow=True))) == 1


@pytest.mark.parametrize("name", ["../x", "A", "", "a_b", "-a", "a" * 54, "한글", ".lock"])
def test_names_that_are_none(bench: Bench, engine: Engine, name: str) -> None:
    with pytest.raises(SettingsError):
        job(bench, name, "pass")
    with pytest.raises(NotFoundError):
        engine.get(name)


def test_slices_that_cannot_be(bench: Bench, engine: Engine) -> None:
    with pytest.raises(UnknownSliceError, match=r"9g\.90gb.*small"):
        engine.create(job(bench, "unknown", "pass", slice="9g.90gb"))
    with pytest.raises(NoCapacityError, match=r"cpu"):
        engine.create(job(bench, "none", "pass", slice="1g.10gb"))
    with pytest.raises(SettingsError):
        engine.create(job(bench, "zero", "pass", nodes=0))
    assert engine.list() == []


def test_a_slice_in_use_is_not_free(bench: Bench, engine: Engine) -> None:
    def free() -> int:
        return next(one.free for one in engine.slices() if one.profile.name == "small")

    total = free()
    engine.create(job(bench, "user", "import time; time.sleep(600)", slice="small"))
    assert free() == total - 1
    with pytest.raises(NoCapacityError, match="user"):
        engine.create(job(bench, "too-many", "pass", slice="small", nodes=total))
    engine.cancel("user")
    assert free() == total


def test_list_by_labels_oldest_first(bench: Bench, engine: Engine) -> None:
    for name, label in (("b", "x"), ("a", "x"), ("c", "y")):
        engine.create(job(bench, name, "pass", labels={"kind": label}))
    assert [status.name for status in engine.list()] == ["b", "a", "c"]
    assert [status.name for status in engine.list(labels={"kind": "x"})] == ["b", "a"]
    assert engine.list(labels={"kind": "x", "more": "z"}) == []


def test_nodes_find_one_another(bench: Bench, engine: Engine) -> None:
    code = """if True:
        import os, socket
        rank, nodes = int(os.environ["KPAAS_LAB_NODE_RANK"]), int(os.environ["KPAAS_LAB_NODES"])
        host, port = os.environ["KPAAS_LAB_MASTER"].rsplit(":", 1)
        if rank == 0:
            with socket.create_server((host, int(port))) as server:
                print("met", server.accept()[0].recv(10).decode(), "of", nodes)
        else:
            while True:
                try:
                    socket.create_connection((host, int(port)), 1).send(b"rank 1"); break
                except ConnectionRefusedError: pass"""
    engine.create(job(bench, "pair", code, nodes=2))
    assert ended(engine, "pair").phase is Phase.SUCCEEDED
    assert any("met rank 1 of 2" in line for line in engine.logs("pair"))


def test_one_node_that_fails_ends_them_all(bench: Bench, engine: Engine) -> None:
    code = "import os, sys, time; time.sleep(600) if os.environ['KPAAS_LAB_NODE_RANK'] == '0' else sys.exit(7)"
    engine.create(job(bench, "half", code, nodes=2))
    status = ended(engine, "half")
    assert (status.phase, status.exit_code) == (Phase.FAILED, 7)


def test_a_job_outlives_a_killed_creator(bench: Bench, engine: Engine) -> None:
    script = f"""if True:
        import os, signal
        from pathlib import Path
        from kpaas_lab.workloads import Job
        from tests.contract.engines import ENGINES
        bench = ENGINES["local"](Path({str(bench.home)!r}), {bench.python!r})
        code = "import time; time.sleep(0.5); print('done')"
        bench.make().create(Job(name="orphan", command=(bench.python, "-c", code), workdir=bench.home))
        os.kill(os.getpid(), signal.SIGKILL)"""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    creator = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert creator.returncode == -signal.SIGKILL
    assert list(engine.logs("orphan", follow=True)) == ["done"]
    assert ended(engine, "orphan").phase is Phase.SUCCEEDED


def test_a_hundred_megabytes_of_log(bench: Bench, engine: Engine) -> None:
    line = "'x' * 1023"
    engine.create(job(bench, "chatty", f"print('begin')\nfor _ in range(100_000): print({line})\nprint('end')"))
    followed = list(engine.logs("chatty", follow=True))
    assert (followed[0], followed[-1]) == ("begin", "end")
    lines = list(engine.logs("chatty"))
    assert (lines[0], lines[-1]) == ("begin", "end")
    assert any("bytes cut" in line for line in lines)
    assert {len(line) for line in lines if "bytes" not in line} == {5, 3, 1023}
    kept = sum(path.stat().st_size for path in bench.home.rglob("*") if path.is_file())
    assert kept < 4 << 20
