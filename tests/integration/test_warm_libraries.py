"""What was imported before a kernel was forked is as it would be in a kernel of its own: figures, threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from hub_config.warm import KERNELS_ENV

ROOT = Path(__file__).parents[2]
KERNEL = """
import os, sys
from hub_config import warm, zygote
from kpaas_lab.kernels import nursery
zygote.warm_up(warm.KERNELS, lambda: None)
if os.fork():
    os.wait()
else:
    learners = {name: value for name, value in os.environ.items() if name not in warm.KERNELS_ENV}
    nursery.become({"argv": sys.argv[1:], "env": learners, "cwd": os.getcwd()})
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernel") / "log"


@pytest.fixture(scope="module")
def kernel(log: Path) -> Iterator[BlockingKernelClient]:
    manager = KernelManager(transport="ipc", connection_file=str(log.with_name("kernel.json")))
    manager.kernel_spec.argv = [sys.executable, "-P", "-c", KERNEL, "-f", "{connection_file}"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MPL"))}
    with log.open("wb") as output:
        manager.start_kernel(
            env={**clean, **KERNELS_ENV, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE"},
            cwd=str(log.parent),
            stdout=output,
            stderr=output,
        )
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=120)
        yield client
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def outputs(kernel: BlockingKernelClient, code: str) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []
    kernel.execute_interactive(code, timeout=60, output_hook=heard.append)
    return heard


def test_a_figure_is_shown(kernel: BlockingKernelClient) -> None:
    heard = outputs(kernel, "import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])")
    shown = [message["content"]["data"] for message in heard if message["msg_type"] == "display_data"]
    assert len(shown) == 1, heard
    assert "image/png" in shown[0]


def test_waiting_threads_sleep(kernel: BlockingKernelClient, log: Path) -> None:
    """OpenMP says what it has read when it was loaded, which is with torch."""
    (loaded,) = [
        message["content"]["text"].strip()
        for message in outputs(kernel, "import sys; print('torch' in sys.modules)")
        if message["msg_type"] == "stream"
    ]
    assert loaded == "True"
    assert "GOMP_SPINCOUNT = '0'" in log.read_text()
