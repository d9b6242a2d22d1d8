"""Kernels of a real hub: forked in their learner's sandbox from what the hub's pool has imported."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from hub_config import bubblewrap, records
from kpaas_lab.errors import SettingsError
from tests.fixtures.hub import Hub, Kernel, Person, running_hub
from tests.waiting import until

MEMORY_MIB = 1536
SLICES = f"""
slices:
  - {{name: cpu, way: cpu, isolation: process, title: {{en: CPU, ko: CPU}}, purpose: {{en: "-", ko: "-"}},
     cpus: 1, memory_mib: {MEMORY_MIB}, processes: 200}}
"""
WAIT_FOR_THE_NURSERY = """
import os, time
deadline = time.monotonic() + 60
while not os.path.exists("/run/kpaas-lab/kernels.sock") and time.monotonic() < deadline: time.sleep(0.05)
"""
LOOK = """
import json, os, resource, sys
print(json.dumps({"warm": "torch" in sys.modules, "pid": os.getpid(), "list": os.readlink("/proc/self/ns/pid"),
    "uid": os.getuid(), "home": os.environ["HOME"], "homes": sorted(os.listdir("/home")), "cwd": os.getcwd(),
    "cores": len(os.sched_getaffinity(0)), "slice": os.environ["KPAAS_LAB_SLICE"],
    "token": bool(os.environ.get("JUPYTERHUB_API_TOKEN")),
    "limits": [resource.getrlimit(getattr(resource, "RLIMIT_" + name))
               for name in ("NPROC", "DATA", "FSIZE", "NOFILE", "CPU")],
    "status": [line for line in open("/proc/self/status") if line.startswith(("Cap", "NoNew", "Seccomp:"))]}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    try:
        bubblewrap.mode()
    except SettingsError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("lab")
    slices = folder / "slices.yaml"
    slices.write_text(SLICES)
    with running_hub(folder / "home", KPAAS_LAB_SLICES=str(slices), KPAAS_LAB_OVERCOMMIT="9") as running:
        yield running


def enter(hub: Hub, name: str) -> tuple[Person, records.Record]:
    person = hub.person(name)
    person.start_server()
    person.enter()
    record = records.load(hub.home / "run" / "sandboxes" / f"{name}.json")
    assert record
    return person, record


@pytest.fixture(scope="module")
def ann(hub: Hub) -> tuple[Person, records.Record]:
    """Her server starts while the pool still imports: it gets its nursery all the same."""
    ann, record = enter(hub, "ann")
    ann.run_cell(WAIT_FOR_THE_NURSERY, 90)
    return ann, record


@pytest.fixture(scope="module")
def kernel(ann: tuple[Person, records.Record]) -> Kernel:
    return ann[0].kernel()


def look(kernel: Kernel) -> dict[str, object]:
    seen = json.loads(kernel.run(LOOK))
    assert isinstance(seen, dict)
    return seen


def pool_of_kernels(hub: Hub) -> psutil.Process:
    return next(
        child
        for child in psutil.Process(hub.processes["hub"].pid).children()
        if "hub_config.zygote" in child.cmdline() and "torch" in child.cmdline()
    )


def test_a_kernel_is_forked_within_its_learners_sandbox_and_limits(
    hub: Hub, ann: tuple[Person, records.Record], kernel: Kernel
) -> None:
    seen = look(kernel)
    assert seen["warm"], (hub.home / "log" / "warm-kernels.log").read_text()
    assert seen["list"] == os.readlink(f"/proc/{ann[1].pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    assert (seen["home"], seen["homes"], seen["slice"]) == ("/home/ann", [".own", "ann"], "cpu")
    assert str(seen["cwd"]).startswith("/home/ann")
    assert seen["token"], "its own token, for the market"
    assert seen["cores"] == 1
    if os.geteuid() == 0:
        assert seen["uid"] not in {0, os.geteuid()}
    # Its identity, its limits and what confines it: as those of a program that was executed.
    run = f"import subprocess, sys\nprint(subprocess.check_output([sys.executable, '-c', {LOOK!r}], text=True))"
    cold = json.loads(kernel.run(run))
    assert not cold.pop("warm")
    differing = {name for name in cold if cold[name] != seen[name]}
    assert differing <= {"pid"}


def test_nothing_of_the_platforms_is_in_a_forked_kernel(hub: Hub, kernel: Kernel) -> None:
    """Neither in its memory nor in its open files: what the pool knew before, every kernel would know."""
    seen = kernel.run(
        "import os\nprint([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
        " if os.path.exists(f'/proc/self/fd/{n}')])\nprint(open('/proc/self/environ').read())"
    )
    assert str(hub.home) not in seen
    environment = psutil.Process(pool_of_kernels(hub).pid).environ()
    assert not [name for name in environment if name.startswith(("JUPYTERHUB", "KPAAS_LAB"))]
    for secret in (hub.secrets.market_token, hub.secrets.cookie_secret, hub.secrets.user_password):
        assert secret not in str(environment)


def test_what_was_imported_elsewhere_keeps_its_things_in_the_learners_home(kernel: Kernel) -> None:
    """Libraries that ask for the home when they are imported, in the pool, where no learner is known."""
    code = "import jedi, os\nprint(os.path.realpath(jedi.settings.cache_directory))"
    assert kernel.run(code) == "/home/ann/.cache/jedi\n"


def test_interrupt_and_restart(kernel: Kernel) -> None:
    interrupted = kernel.run(
        "import time\nx = 1\nprint('begun', flush=True)\ntime.sleep(60)", begun=lambda: kernel.ask("interrupt")
    )
    assert interrupted == "begun\nKeyboardInterrupt"
    assert kernel.run("print(x)") == "1\n", "an interrupt loses nothing"
    before = look(kernel)
    kernel.ask("restart")
    after = look(kernel)
    assert kernel.run("print('x' in globals())") == "False\n"
    assert after["pid"] != before["pid"]
    assert after["warm"], "restarted as quickly as started"
    assert not kernel.run(f"import os; print(os.path.exists('/proc/{before['pid']}') or '')").strip()


def test_a_kernel_that_takes_too_much_memory_dies_alone_and_comes_back(
    hub: Hub, ann: tuple[Person, records.Record], kernel: Kernel
) -> None:
    other = ann[0].kernel()
    other.run("x = 'still here'")
    assert kernel.run(f"held = [bytearray(b'x') * (64 << 20) for _ in range({MEMORY_MIB // 64 + 8})]") == "died"
    assert kernel.run("print(1)") == "1\n", "JupyterLab's server has started it again"
    assert look(kernel)["warm"]
    assert other.run("print(x)") == "still here\n"
    event = json.loads((hub.home / "learners/ann/.kpaas-lab/events.log").read_text().splitlines()[-1])
    assert (event["event"], event["reason"], event["limit_mib"]) == ("killed", "memory", MEMORY_MIB)


def test_a_kernel_that_is_killed_is_noticed_and_restarted(kernel: Kernel) -> None:
    assert kernel.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == "died"
    assert look(kernel)["warm"]


def test_kernels_go_on_without_the_pool_and_without_the_nursery(
    ann: tuple[Person, records.Record], kernel: Kernel, hub: Hub
) -> None:
    """The nursery is the sandbox's own; the hub's pool is only where it came from."""
    kernel.run("kept = 7")
    pool = pool_of_kernels(hub)
    pool.kill()
    until(lambda: pool.status() == psutil.STATUS_ZOMBIE, 10, "end of the pool")
    assert look(ann[0].kernel())["warm"]
    kernel.run("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    assert kernel.run("print(kept)") == "7\n"
    assert not look(ann[0].kernel())["warm"], "started the ordinary way"


def test_a_pool_that_hangs_keeps_nobody_waiting(hub: Hub) -> None:
    enter(hub, "bob")  # and the hub starts the pool again that the test above has killed
    pool = pool_of_kernels(hub)
    pool.send_signal(signal.SIGSTOP)
    try:
        carl, record = enter(hub, "carl")
        seen = look(carl.kernel())
        assert not seen["warm"]
        assert seen["list"] == os.readlink(f"/proc/{record.pid}/ns/pid")
    finally:
        pool.send_signal(signal.SIGCONT)
    carl.run_cell(WAIT_FOR_THE_NURSERY, 90)
    assert look(carl.kernel())["warm"], "once the pool is back, so are quick kernels"
