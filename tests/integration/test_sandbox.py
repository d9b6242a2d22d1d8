"""A learner's sandbox: what it shows, how long it lives, how it ends. Real bubblewrap, real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_config import bubblewrap, records
from kpaas_lab.errors import AlreadyExistsError, SettingsError
from tests.fixtures.sandboxes import PROFILE, Learner, installation
from tests.waiting import until


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


def test_who_and_where_the_learner_is(ann: Learner) -> None:
    printed = ann.run("""
        import getpass, json, os, pwd, socket
        print(json.dumps({"who": pwd.getpwuid(os.getuid()).pw_name, "home": os.path.expanduser("~"),
            "cwd": os.getcwd(), "host": socket.gethostname(),
            "address": socket.gethostbyname(socket.gethostname()), "env": dict(os.environ)}))
    """)
    seen = json.loads(printed)
    assert seen["who"] == "ann"
    assert seen["home"] == seen["cwd"] == "/home/ann"
    assert seen["host"] == "lab"
    assert seen["address"].startswith("127.")
    assert set(seen["env"]) <= {
        "PATH",
        "HOME",
        "LANG",
        "LC_CTYPE",
        "JUPYTER_RUNTIME_DIR",
    }  # nothing of the platform's own environment


@pytest.mark.parametrize("parent", ["/tmp", "/var/tmp"])
def test_a_platform_under_a_folder_for_temporary_files_is_seen(ann: Learner, parent: str) -> None:
    with tempfile.TemporaryDirectory(dir=parent, prefix="platform-") as outer:
        for folder in (Path(outer), Path(outer) / "deep"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        (Path(outer) / "deep" / "note").write_text("seen")
        assert ann.run(f"print(open('{outer}/deep/note').read())", readable=[Path(outer) / "deep"]).strip() == "seen"


def test_the_home_is_kept_and_the_rest_is_not(ann: Learner) -> None:
    ann.run("open('kept', 'w').write('yes'); open('/tmp/gone', 'w').write('yes')")
    assert (ann.home / "kept").read_text() == "yes"
    printed = ann.run("import os; print(os.path.exists('kept'), os.path.exists('/tmp/gone'))")
    assert printed.split() == ["True", "False"]


def test_the_library_and_the_notebook_programs_work_inside(ann: Learner) -> None:
    record = ann.start(
        sys.executable,
        "-c",
        "import kpaas_lab, numpy, jupyterlab, ssl\n"
        "from kpaas_lab.slices import load_catalogue\nfrom pathlib import Path\n"
        "print(len(load_catalogue(Path(kpaas_lab.__file__).parent.parent / 'hub_config' / 'slices.yaml')) > 0,"
        " len(ssl.create_default_context().get_ca_certs()) >= 0)",
    )
    assert ann.finish(record, 60) == 0, ann.printed()
    assert "True True" in ann.printed()


def test_the_exit_code_is_the_commands(ann: Learner) -> None:
    assert ann.finish(ann.start("/bin/sh", "-c", "exit 7")) == 7
    assert ann.finish(ann.start("/bin/sh", "-c", "kill -9 $$")) == 128 + 9
    assert ann.finish(ann.start("/no/such/program")) == 127
    assert "/no/such/program" in ann.printed()


def test_one_sandbox_a_learner(ann: Learner) -> None:
    record = ann.start("/bin/sleep", "60")
    with pytest.raises(AlreadyExistsError):
        ann.start("/bin/sleep", "60")
    assert records.poll(record) is None


def test_stop_lets_the_server_end_in_its_own_way(ann: Learner) -> None:
    record = ann.python("""
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("goodbye"), sys.exit(0)))
        print("here"); time.sleep(60)
    """)
    ann.until_printed("here")
    records.stop(record, 10)
    assert "goodbye" in ann.printed()
    assert records.poll(record) == 0
    assert not ann.record.exists()
    records.stop(record, 10)  # a second time does nothing


def test_a_record_names_one_process_only(ann: Learner) -> None:
    """A pid that now belongs to somebody else is neither alive nor killed."""
    other = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
    try:
        ann.record.parent.mkdir(parents=True, exist_ok=True)
        ann.record.write_text(json.dumps({"pid": other.pid, "start_time": 1, "name": "ann"}))
        record = records.load(ann.record)
        assert record is not None
        assert records.poll(record) is not None
        records.stop(record, 0.2)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_a_broken_record_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "ann.json").write_text(content)
    assert records.load(tmp_path / "ann.json") is None
    assert records.load(tmp_path / "bob.json") is None


STARTER = """
    import sys
    from pathlib import Path
    from tests.fixtures.sandboxes import Learner
    learner = Learner("ann", Path(sys.argv[1]))
    learner.start("/bin/sh", "-c", "echo started; sleep 60")
    print("up", flush=True)
    sys.stdin.read()
"""


def test_it_outlives_the_hub(ann: Learner) -> None:
    """The process that started it is killed; another finds it by its record, and can stop it."""
    hub = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STARTER), str(ann.state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=bubblewrap.ROOT,
    )
    assert hub.stdout is not None
    assert hub.stdin is not None
    assert hub.stdout.readline() == "up\n"
    hub.kill()
    hub.wait()
    record = records.load(ann.record)
    assert record is not None
    ann.until_printed("started")
    assert records.poll(record) is None
    assert records.stop_all(ann.state, grace=0.5) == ["ann"]
    assert records.poll(record) is not None


def test_a_hub_killed_while_starting_leaves_nothing_unknown(ann: Learner) -> None:
    """Nothing of the learner's runs before the record is stored: without an order the sandbox ends itself."""
    code = textwrap.dedent(STARTER).replace("learner.start", "import hub_config.records as r, os, time\n"
        "r.keep = lambda record, child: (print(record.pid, flush=True), time.sleep(60))\nlearner.start")  # fmt: skip
    hub = subprocess.Popen(
        [sys.executable, "-c", code, str(ann.state)], stdout=subprocess.PIPE, text=True, cwd=bubblewrap.ROOT
    )
    assert hub.stdout is not None
    pid = int(hub.stdout.readline())
    hub.send_signal(signal.SIGKILL)
    hub.wait()
    until(lambda: not os.path.exists(f"/proc/{pid}/status") or _is_zombie(pid), 10, "end of the orphan")
    assert "started" not in ann.printed()


def _is_zombie(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_a_log_does_not_grow_without_end(ann: Learner) -> None:
    record = ann.python("for _ in range(40): print('x' * (1 << 20))")
    ann.finish(record)
    assert ann.log.stat().st_size <= (16 << 20) + (1 << 17)


def test_two_learners_are_two_users_where_root_runs_the_platform(learners: tuple[Learner, Learner]) -> None:
    if bubblewrap.mode() is not bubblewrap.Mode.OWN_UID:
        pytest.skip("not root: all learners are this user, apart by namespaces")
    ann, bob = learners
    uids = {int(learner.run("import os; print(os.getuid())")) for learner in (ann, bob)}
    assert len(uids) == 2
    assert min(uids) >= 20_000
    assert {ann.home.stat().st_uid, bob.home.stat().st_uid} == uids
    assert int(ann.run("import os; print(os.getuid())")) == ann.home.stat().st_uid  # and it stays


def test_cores_are_limited(ann: Learner) -> None:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("one core: nothing to limit")
    printed = ann.run(
        "import os; print(len(os.sched_getaffinity(0)))", profile=PROFILE.model_copy(update={"cpus": 1.0})
    )
    assert printed.split() == ["1"]


@pytest.mark.parametrize("name", ["../ann", "", "a:b", "ann/bob", "root", "-x", "a\nb", "앤", "a" * 64])
def test_a_name_that_is_no_home(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError):
        Learner(name, tmp_path).start("/bin/true")


def test_a_home_that_is_a_link_is_refused(ann: Learner) -> None:
    ann.home.parent.mkdir(parents=True)
    ann.home.symlink_to("/etc")
    with pytest.raises(SettingsError):
        ann.start("/bin/true")


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lets nobody make a sandbox."""

    def mode() -> bubblewrap.Mode:
        raise SettingsError("Sandboxes can't be made here.", hint="Do this.")

    monkeypatch.setattr(bubblewrap, "mode", mode)


def test_without_sandboxes_a_second_learner_is_refused(tmp_path: Path, forbidden: None) -> None:
    (tmp_path / "learners" / "bob").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"only one learner.*Do this"):
        Learner("ann", tmp_path).start("/bin/true")


def test_without_sandboxes_root_refuses_all(tmp_path: Path, forbidden: None) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root")
    with pytest.raises(SettingsError, match="not as root"):
        Learner("ann", tmp_path).start("/bin/true")


def test_without_sandboxes_one_learner_works_in_their_own_home(tmp_path: Path, forbidden: None) -> None:
    """No sandbox, but the same limits and the same end: nothing is left behind."""
    if os.geteuid() == 0:
        pytest.skip("root refuses; test_sandbox_ordinary_user runs this")
    with installation(tmp_path / "state") as (ann, _bob):
        printed = ann.run("import os; print(os.environ['HOME'], os.getcwd()); raise SystemExit(5)")
        assert printed.split() == [str(ann.home)] * 2
        hungry = ann.python("kept = []\nwhile True: kept.append(bytearray(b'x') * (16 << 20))")
        assert ann.finish(hungry) == 128 + 9
        left = "import os, time\nif not os.fork():\n os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
        ann.finish(ann.python(f"{left}\ntime.sleep(0.5)"))
        assert not Path(f"/proc/{ann.printed().strip()}").exists()
        stubborn = ann.python(f"{left}\nimport signal; signal.signal(15, signal.SIG_IGN)\ntime.sleep(60)")
        ann.until_printed("\n")
        records.stop(stubborn, 0.2)
        pid = ann.printed().strip()
        until(lambda: _is_zombie(int(pid)), 5, "end of what was left")
