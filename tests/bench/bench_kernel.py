"""From the order to a notebook kernel that has torch imported: forked in a sandbox, and the stock way."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hub_config import bubblewrap, records, sandbox
from hub_config.server_environment import PROVISIONER
from hub_config.warm import KERNELS, KERNELS_ENV, WarmPool
from kpaas_lab.errors import SettingsError
from kpaas_lab.slices import find, load_catalogue
from tests.bench.table import Row
from tests.waiting import until

# A jupyter_client inside the sandbox, as JupyterLab's server has one. The first kernel is not counted.
CLIENT = """
import os, statistics, sys, time
from jupyter_client import KernelManager
deadline = time.monotonic() + 30
while sys.argv[1:] and not os.path.exists("/run/kpaas-lab/kernels.sock"):
    assert time.monotonic() < deadline, "no nursery"
    time.sleep(0.05)
os.makedirs("/run/jupyter", exist_ok=True)
times = []
for number in range(6):
    began = time.perf_counter()
    manager = KernelManager(transport="ipc", connection_file=f"/run/jupyter/kernel-{number}.json")
    manager.start_kernel()
    client = manager.client(); client.start_channels(); client.wait_for_ready(timeout=120)
    reply = client.execute("import torch", reply=True, timeout=120)
    assert reply["content"]["status"] == "ok"
    times.append(time.perf_counter() - began)
    client.stop_channels(); manager.shutdown_kernel(now=True)
print("SECONDS", statistics.median(times[1:]))
"""


def seconds(state: Path, provisioner: str, pool: WarmPool | None) -> float:
    """Median of five, inside a sandbox of its own."""
    log = state / "log" / f"{provisioner}.log"
    record = sandbox.start(
        sandbox.Sandbox(
            name="ann",
            home=state / "learners" / "ann",
            profile=find(load_catalogue(bubblewrap.ROOT / "hub_config" / "slices.yaml"), "cpu"),
            env={
                "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
                "HOME": "/home/ann",
                "JUPYTER_DEFAULT_PROVISIONER_NAME": provisioner,
            },
            command=(sys.executable, "-c", CLIENT, *(["warm"] if pool else [])),
            record=state / "run" / "sandboxes" / "ann.json",
            log=log,
            kernels=pool,
        )
    )
    until(lambda: records.poll(record) is not None, 300, "end of the kernels", log=log)
    found = re.search(r"SECONDS ([\d.]+)", log.read_text())
    if not found:
        raise RuntimeError(log.read_text()[-2000:])
    return float(found[1])


def rows() -> Iterable[Row]:
    """One row."""
    what = "kernel ready with torch imported, in a sandbox"
    try:
        bubblewrap.mode()
    except SettingsError as error:
        yield Row(what, f"not run: {error}")
        return
    state = Path(tempfile.mkdtemp(prefix="kpaas-lab-bench-"))
    pool = WarmPool(state / "log" / "kernels.log", modules=KERNELS, env=KERNELS_ENV)
    try:
        pool.start()
        until(pool.ready, 120, "warm process of kernels", log=pool.log)
        ours = seconds(state, PROVISIONER, pool)
        peer = seconds(state, "local-provisioner", None)
        yield Row(what, f"{ours:.2f} s", "stock kernel + import torch", f"{peer:.2f} s", "<= 0.5 s")
    finally:
        pool.close()
        records.stop_all(state, grace=0)
        shutil.rmtree(state, ignore_errors=True)
