"""From the order to a JupyterLab server that answers: one and ten at once, exec'ed, forked warm, and the stock way."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hub_config import bubblewrap, ports, records, sandbox
from hub_config.profiles import Holding
from hub_config.server_environment import JUPYTER_CONFIG, environment
from hub_config.warm import WarmPool
from kpaas_lab.errors import SettingsError
from kpaas_lab.slices import find, load_catalogue
from tests.bench.table import Row
from tests.waiting import until

COMMAND = (sys.executable, "-m", "jupyterhub.singleuser")
PROFILE = find(load_catalogue(Path(bubblewrap.ROOT, "hub_config", "slices.yaml")), "cpu")
# (the learner's name, the port to answer on) -> how to end it
Start = Callable[[str, int], Callable[[], None]]


class Hub(http.server.BaseHTTPRequestHandler):
    """What a server asks of the hub before it answers: its version. The same for all three ways."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", "6.1.1")
        self.end_headers()
        self.wfile.write(b'{"version": "6.1.1"}')

    do_POST = do_GET

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def hub() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def of_the_hub(name: str, port: int, hub_port: int) -> dict[str, str]:
    """What JupyterHub tells every server."""
    prefix, api = f"/user/{name}/", f"http://127.0.0.1:{hub_port}/hub/api"
    return {
        "JUPYTERHUB_API_TOKEN": "none",
        "JUPYTERHUB_API_URL": api,
        "JUPYTERHUB_ACTIVITY_URL": f"{api}/users/{name}/activity",
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_CLIENT_ID": f"jupyterhub-user-{name}",
        "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{prefix}oauth_callback",
        "JUPYTERHUB_SERVICE_PREFIX": prefix,
        "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}{prefix}",
        "JUPYTERHUB_USER": name,
    }


def answers(name: str, port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/user/{name}/api", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def measure(start: Start, count: int) -> float:
    """Seconds until the last of them answers."""
    names = [f"learner{number}" for number in range(count)]
    where = dict(zip(names, (ports.free_port() for _ in names), strict=True))
    ends: list[Callable[[], None]] = []
    began = time.perf_counter()
    try:
        with ThreadPoolExecutor(count) as threads:
            ends = list(threads.map(start, names, where.values()))
        waiting = set(names)
        while waiting:
            waiting -= {name for name in waiting if answers(name, where[name])}
            if time.perf_counter() - began > 180:
                raise TimeoutError(f"{len(waiting)} servers never answered")
            time.sleep(0.02)
        return time.perf_counter() - began
    finally:
        for end in ends:
            end()


def in_sandbox(state: Path, hub_port: int, pool: WarmPool | None) -> Start:
    def start(name: str, port: int) -> Callable[[], None]:
        record = sandbox.start(
            sandbox.Sandbox(
                name=name,
                home=state / "learners" / name,
                profile=PROFILE,
                env={**of_the_hub(name, port, hub_port), **environment(name, Holding(PROFILE, None), "en")},
                command=COMMAND,
                record=state / "run" / "sandboxes" / f"{name}.json",
                log=state / "log" / f"{name}.log",
                warm=pool,
                port=port,
                readable=(JUPYTER_CONFIG,),
            )
        )
        return lambda: records.stop(record, 0)

    return start


def stock(state: Path, hub_port: int) -> Start:
    """As JupyterHub's own local spawner does: a process of this user, no sandbox."""

    def start(name: str, port: int) -> Callable[[], None]:
        home = state / "stock" / name
        home.mkdir(parents=True, exist_ok=True)
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **of_the_hub(name, port, hub_port)}
        process = subprocess.Popen(
            [*COMMAND, "--allow-root"], env=env, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def end() -> None:
            process.kill()
            process.wait()

        return end

    return start


def rows() -> Iterable[Row]:
    """One row for each number of servers and each way of starting them."""
    try:
        bubblewrap.mode()
    except SettingsError as error:
        yield Row("spawn -> JupyterLab ready", f"not run: {error}")
        return
    state = Path(tempfile.mkdtemp(prefix="kpaas-lab-bench-"))
    pool = WarmPool(state / "log" / "warm.log")
    try:
        with hub() as hub_port:
            pool.start()
            until(pool.ready, 60, "warm process", log=pool.log)
            for count, goal in ((1, "<= 1.0 s warm"), (10, "<= 6 s warm")):
                peer = measure(stock(state, hub_port), count)
                for way, chosen in (("cold", None), ("warm", pool)):
                    ours = measure(in_sandbox(state, hub_port, chosen), count)
                    what = f"spawn -> JupyterLab ready, {count} at once, {way}, in a sandbox"
                    yield Row(what, f"{ours:.2f} s", "jupyterhub-singleuser, no sandbox", f"{peer:.2f} s", goal)
    finally:
        pool.close()
        records.stop_all(state, grace=0)
        shutil.rmtree(state, ignore_errors=True)
