"""Notebook kernels forked in a sandbox: a real jupyter_client inside starts, interrupts, restarts and ends them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_config import bubblewrap
from hub_config.server_environment import PROVISIONER
from hub_config.warm import KERNELS_ENV, WarmPool
from kpaas_lab.errors import SettingsError
from tests.fixtures.ports import free_port
from tests.fixtures.sandboxes import PROFILE, Learner, installation
from tests.waiting import until

ROOMY = PROFILE.model_copy(update={"memory_mib": 2048, "processes": 256})
MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "threadpoolctl",
    "numpy",
    "mailbox",
)

PRELUDE = """
import json, os, sys, time, warnings
from jupyter_client import KernelManager
if len(sys.argv) > 1:
    deadline = time.monotonic() + 20
    while not os.path.exists("/run/kpaas-lab/kernels.sock") and time.monotonic() < deadline: time.sleep(0.02)
manager = KernelManager(transport="ipc", connection_file="/run/jupyter/kernel-1.json")
os.makedirs("/run/jupyter", exist_ok=True)
manager.start_kernel(cwd="/tmp", env={**os.environ, "MINE": "yes"})
client = manager.client(); client.start_channels(); client.wait_for_ready(timeout=20)
def run(code, timeout=60):
    texts = []
    def hear(message):
        content = message["content"]
        texts.append(content.get("text") or content.get("ename") or "")
    reply = client.execute_interactive(code, timeout=timeout, output_hook=hear)
    return "".join(texts).strip()
def end():
    client.stop_channels(); manager.shutdown_kernel(now=True)
"""


@pytest.fixture
def ann(tmp_path: Path) -> Iterator[Learner]:
    try:
        bubblewrap.mode()
    except SettingsError as error:
        pytest.skip(str(error))
    with installation(tmp_path / "state") as (ann, _bob):
        yield ann


@pytest.fixture
def pool(ann: Learner) -> Iterator[WarmPool]:
    pool = WarmPool(ann.state / "log" / "kernels.log", modules=MODULES, env=KERNELS_ENV)
    pool.start()
    until(pool.ready, 60, "warm process of kernels", log=pool.log)
    yield pool
    pool.close()


def session(ann: Learner, code: str, pool: WarmPool | None) -> str:
    env = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "JUPYTER_RUNTIME_DIR": "/run/jupyter",
        "JUPYTER_PLATFORM_DIRS": "1",
        "JUPYTER_DEFAULT_PROVISIONER_NAME": PROVISIONER,
    }
    words = [sys.executable, "-c", PRELUDE + code] + (["warm"] if pool else [])
    record = ann.start(*words, env=env, profile=ROOMY, kernels=pool)
    code_of_exit = ann.finish(record, 90)
    assert code_of_exit == 0, ann.printed()
    return ann.printed()


LOOK = """
print(run("import sys, os, json; print(json.dumps({'warm': 'mailbox' in sys.modules, 'cwd': os.getcwd(), "
    "'mine': os.environ.get('MINE'), 'home': os.environ['HOME'], 'cores': len(os.sched_getaffinity(0)), "
    "'uid': os.getuid(), "
    "'status': [l for l in open('/proc/self/status') if l.startswith(('CapEff', 'NoNew', 'Seccomp'))], "
    "'session': os.getsid(0) == os.getpid(), 'descriptors': sorted(os.listdir('/proc/self/fd'))[:1]}))"))
end()
"""


def test_a_forked_kernel_is_like_one_that_was_executed(ann: Learner, pool: WarmPool) -> None:
    cold = json.loads(session(ann, LOOK, None).splitlines()[-1])
    warm = json.loads(session(ann, LOOK, pool).splitlines()[-1])
    assert warm.pop("warm")
    assert not cold.pop("warm")
    assert warm == cold
    assert (warm["cwd"], warm["mine"], warm["home"]) == ("/tmp", "yes", "/home/ann")


def test_interrupt_restart_and_end(ann: Learner, pool: WarmPool) -> None:
    printed = session(
        ann,
        """
import threading
threading.Timer(1.0, manager.interrupt_kernel).start()
print("interrupted:", run("import time; time.sleep(60)"))
run("x = 1"); first = run("import os; print(os.getpid())")
manager.restart_kernel(now=True); client.wait_for_ready(timeout=20)
print("restarted:", run("print('x' in globals())"), first != run("import os; print(os.getpid())"))
print("warm again:", run("import sys; print('mailbox' in sys.modules)"))
process = manager.provisioner.process
last = process.pid
client.execute("import os; os._exit(7)")
print("exit code:", process.wait())
end()
print("left:", os.path.exists(f"/proc/{last}"))
""",
        pool,
    )
    assert "interrupted: KeyboardInterrupt" in printed
    assert "restarted: False True" in printed
    assert "warm again: True" in printed
    assert "exit code: 7" in printed
    assert "left: False" in printed


def test_numerical_libraries_use_all_the_cores_of_the_slice(ann: Learner, pool: WarmPool) -> None:
    code = """
print("threads", run("import os, threadpoolctl, numpy\\n"
    "print(max(i['num_threads'] for i in threadpoolctl.threadpool_info()) == len(os.sched_getaffinity(0)))"))
end()
"""
    assert "threads True" in session(ann, code, pool)


def test_without_the_nursery_kernels_start_the_ordinary_way(ann: Learner, pool: WarmPool) -> None:
    code = """
import signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) not in (1, os.getpid(), manager.provisioner.pid):
        try: os.kill(int(pid), signal.SIGKILL)
        except OSError: pass
print("still there:", run("print(1 + 1)"))
manager.restart_kernel(now=True); client.wait_for_ready(timeout=20)
print("ordinary:", run("import sys; print('mailbox' in sys.modules)"))
end()
"""
    printed = session(ann, code, pool)
    assert "still there: 2" in printed
    assert "ordinary: False" in printed


def test_a_servers_kernels_do_not_listen_where_others_could(ann: Learner) -> None:
    """On the machine's loopback their output would be there for anybody."""
    port = free_port()
    record = ann.python(
        f"""
        import glob, json, subprocess, sys, time, urllib.request
        address = "http://127.0.0.1:{port}"
        server = subprocess.Popen([sys.executable, "-m", "jupyter_server", "--port={port}", "--no-browser",
            "--ServerApp.jpserver_extensions={{}}"], env={{"HOME": "/home/ann", "PATH": "{Path(sys.executable).parent}",
            "JUPYTER_TOKEN": "x", "JUPYTER_RUNTIME_DIR": "/run/jupyter"}})
        request = urllib.request.Request(address + "/api/kernels", b"{{}}", {{"Authorization": "token x"}})
        for _ in range(200):
            try: print(json.load(urllib.request.urlopen(request))["id"], flush=True); break
            except OSError: time.sleep(0.1)
        (file,) = glob.glob("/run/jupyter/kernel-*.json")
        print("transport", json.load(open(file))["transport"])
        server.kill()
        """,
        profile=ROOMY,
    )
    ann.finish(record, 60)
    assert "transport ipc" in ann.printed()
