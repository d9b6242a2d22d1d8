"""What the gateway adds to a call (key, plan, proxying, metering), beside LiteLLM's proxy before the same upstream."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench import peers
from tests.bench.http_load import cpu_seconds, post
from tests.bench.table import Row
from tests.fixtures.gateway import MORTAL, sqlite_at
from tests.fixtures.ports import free_port

LITELLM = ("litellm[proxy]==1.106.2",)
ROOT = Path(__file__).resolve().parents[2]
CHAT = json.dumps({"model": "noop", "messages": [{"role": "user", "content": "hello"}]}).encode()
AT_ONCE = 8
OURS, THEIRS = (200, 2000, 4000), (50, 300, 500)  # calls to warm up, one by one, and eight at once


@dataclass(frozen=True)
class Figures:
    """Milliseconds that were added at p50 and p99, one call after another; and CPU a call under load, in us."""

    p50: float
    p99: float
    cpu: float
    per_second: float

    @property
    def latency(self) -> str:
        return f"{self.p50:.2f} / {self.p99:.2f}"


def rows() -> Iterator[Row]:
    """One worker each."""
    with tempfile.TemporaryDirectory(prefix="kpaas-lab-bench-") as folder:
        ours = measure_gateway(Path(folder))
        try:
            theirs = measure_litellm(Path(folder))
            latency, cpu, rate = theirs.latency, f"{theirs.cpu:.0f}", f"{theirs.per_second:.0f}"
        except (peers.PeerUnavailableError, TimeoutError) as error:
            latency = cpu = rate = f"not measured: {error}".strip().splitlines()[-1]
    yield Row("gateway: added latency a call, p50 / p99 (ms)", ours.latency, "LiteLLM proxy", latency, "<= 1 / <= 8 ms")
    yield Row("gateway: CPU a call (us)", f"{ours.cpu:.0f}", "LiteLLM proxy", cpu, "<= 400 us")
    yield Row(f"gateway: calls a second, {AT_ONCE} at once", f"{ours.per_second:.0f}", "LiteLLM proxy", rate)


def measure(
    direct: tuple[str, str],
    proxied: tuple[str, str],
    headers: Mapping[str, str],
    pid: int,
    calls: tuple[int, int, int],
) -> Figures:
    """Figures of a proxy; addresses with their paths."""
    warm, one_by_one, at_once = calls
    post(*direct, CHAT, requests=warm, connections=1)
    post(*proxied, CHAT, requests=warm, connections=AT_ONCE, headers=headers)
    base = post(*direct, CHAT, requests=one_by_one, connections=1)
    through = post(*proxied, CHAT, requests=one_by_one, connections=1, headers=headers)
    before = cpu_seconds(pid)
    load = post(*proxied, CHAT, requests=at_once, connections=AT_ONCE, headers=headers)
    cpu = cpu_seconds(pid) - before
    failed = base.failed + through.failed + load.failed
    if failed:
        raise RuntimeError(f"{failed} calls failed")
    added = [(through.percentile(percent) - base.percentile(percent)) * 1000 for percent in (50, 99)]
    return Figures(*added, cpu / at_once * 1e6, load.per_second)


def measure_gateway(folder: Path) -> Figures:
    """Ours: a subscription with all three limits, SQLite, metering to a spool with fsync."""
    lab = sqlite_at(folder)
    api = lab.listing(calls_per_day=10**9, calls_per_second=10**6, concurrency=1000)
    place = lab.learners / "ann" / ".kpaas-lab" / "workloads" / "digits"
    place.mkdir(parents=True)
    try:
        with running([sys.executable, "-m", "tests.bench.noop_upstream", f"unix:{place}/0.sock"], place / "0.sock"):
            gateway = lab.gateway()
            assert gateway.process.child is not None
            direct = (f"unix:{place}/0.sock", "/v2/models/m/infer")
            through = (f"unix:{gateway.place}", f"{api.path}/models/m/infer")
            return measure(direct, through, api.headers, gateway.process.child.pid, OURS)
    finally:
        lab.stop()


def measure_litellm(folder: Path) -> Figures:
    """LiteLLM's proxy, with a key, one worker, no database (so it meters nothing)."""
    python = peers.python(LITELLM)
    upstream, port = free_port(), free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        json.dumps(
            {
                "model_list": [
                    {
                        "model_name": "noop",
                        "litellm_params": {
                            "model": "openai/gpt-4o-mini",
                            "api_base": f"http://127.0.0.1:{upstream}/v1",
                            "api_key": "none",
                        },
                    }
                ],
                "general_settings": {"master_key": "sk-bench"},
                "litellm_settings": {"telemetry": False},
            }
        )
    )
    command = [str(python.parent / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with (
        running([sys.executable, "-m", "tests.bench.noop_upstream", f"127.0.0.1:{upstream}"], upstream),
        running([*command, "--num_workers", "1"], port) as pid,
    ):
        direct = (f"127.0.0.1:{upstream}", "/v1/chat/completions")
        through = (f"127.0.0.1:{port}", "/v1/chat/completions")
        return measure(direct, through, {"Authorization": "Bearer sk-bench"}, pid, THEIRS)


@contextlib.contextmanager
def running(command: list[str], place: Path | int, patience: float = 180.0) -> Iterator[int]:
    """A server in a process group of its own, from when it accepts connections; its pid."""
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_COLOR": "1"}
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [*MORTAL, *command],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + patience
            while not accepts(place):
                if child.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise TimeoutError(f"{command[0]}: {output.read()[-800:].decode(errors='replace')}")
                time.sleep(0.1)
            yield child.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def accepts(place: Path | int) -> bool:
    """Whether somebody listens on a Unix socket or on a port of this machine."""
    family, address = (socket.AF_INET, ("127.0.0.1", place)) if isinstance(place, int) else (socket.AF_UNIX, str(place))
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0
