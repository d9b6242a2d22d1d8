"""`python -m kpaas_lab.runtime.serve`: one model behind the Open Inference Protocol v2, until it is told to stop.

It listens at once and answers "not ready" until the model is loaded. When model.json changes it loads the new version
beside the old one and swaps them between two requests. SIGTERM: not ready, then no new connections, then the requests
in flight finish, then it exits with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import uvicorn

from kpaas_lab import models
from kpaas_lab.errors import LabError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.models import manifest as manifests
from kpaas_lab.models.store import available_threads
from kpaas_lab.runtime.inference import InferenceApp, Limits

log = logging.getLogger("kpaas_lab.serve")

LISTEN = "KPAAS_LAB_LISTEN"
_WATCH_SECONDS = 0.5
_NEVER = object()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m kpaas_lab.runtime.serve", description=_("Serve one saved model."))
    parser.add_argument("--model", type=Path, required=True, help=_("folder that kpaas_lab.models.save made"))
    parser.add_argument("--name", required=True, help=_("the model's name in the protocol's paths"))
    parser.add_argument("--max-batch", type=int, default=32, help=_("rows at most in one run (default: %(default)s)"))
    parser.add_argument(
        "--max-delay", type=float, default=0.002, help=_("seconds a request waits for others (default: %(default)s)")
    )
    parser.add_argument(
        "--max-bytes", type=int, default=10 * 1024 * 1024, help=_("of one request (default: %(default)s)")
    )
    parser.add_argument("--threads", type=int, default=None, help=_("processor threads (default: what there is)"))
    parser.add_argument(
        "--drain", type=float, default=0.3, help=_("seconds not ready before it closes (default: %(default)s)")
    )
    parser.add_argument(
        "--grace", type=float, default=8.0, help=_("seconds for requests in flight to finish (default: %(default)s)")
    )
    parser.add_argument("--access-log", action="store_true", help=_("log every request"))
    options = parser.parse_args(arguments)
    if options.max_batch < 1 or options.max_delay < 0 or options.max_bytes < 1024 or (options.threads or 1) < 1:
        parser.error(_("--max-batch and --threads start at 1, --max-delay at 0, --max-bytes at 1024"))
    return options


@contextlib.contextmanager
def listener(address: str) -> Iterator[socket.socket]:
    """A listening socket.

    Args:
        address: `unix:<path>` or `<host>:<port>`. A Unix socket is made with mode 0600 beside its path and renamed to
            it once it listens; what stood there is replaced. Its path may be longer than the 107 bytes that bind takes.

    Raises:
        SettingsError: an address that can't be listened on.
    """
    kind, _colon, rest = address.partition(":")
    try:
        if kind == "unix" and rest:
            with _unix_listener(Path(rest)) as sock:
                yield sock
            return
        host, _colon, port = address.rpartition(":")
        sock = socket.create_server((host.strip("[]"), int(port)), backlog=1024, family=_family(host))
    except (OSError, ValueError, OverflowError) as error:
        raise SettingsError(
            _("{name} is {address!r}, which can't be listened on: {error}.").format(
                name=LISTEN, address=address, error=error
            ),
            hint=_("Give unix:<path> or <host>:<port>."),
        ) from error
    with sock:
        yield sock


@contextlib.contextmanager
def _unix_listener(path: Path) -> Iterator[socket.socket]:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(17, "another file is there", str(path))
        temporary = f".{os.getpid()}.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            previous = os.umask(0o177)
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                sock.bind(f"/proc/self/fd/{folder}/{temporary}")
            finally:
                os.umask(previous)
            sock.listen(1024)
            inode = os.stat(temporary, dir_fd=folder).st_ino
            os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            try:
                yield sock
            finally:
                with contextlib.suppress(OSError):
                    if os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_ino == inode:
                        os.unlink(path.name, dir_fd=folder)
    finally:
        os.close(folder)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Server(uvicorn.Server):
    """uvicorn, without its own signal handling: it would end the process by the signal instead of with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(options: argparse.Namespace, address: str) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a drain, 1 where the model can't be loaded.
    """
    app = InferenceApp(options.name, Limits(options.max_batch, options.max_delay, options.max_bytes))
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        lifespan="off",
        ws="none",
        interface="asgi3",
        log_level="info" if options.access_log else "warning",
        access_log=options.access_log,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(options.grace)),
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _drain, app, server, options.drain)
    with listener(address) as sock:
        watching = asyncio.create_task(_keep_loaded(app, options, server))
        await server.serve(sockets=[sock])
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return await watching
    return 0


def _drain(app: InferenceApp, server: uvicorn.Server, seconds: float) -> None:
    if app.draining:
        return
    app.draining = True
    log.info("stopping: requests in flight finish")
    asyncio.get_running_loop().call_later(seconds, setattr, server, "should_exit", True)


async def _keep_loaded(app: InferenceApp, options: argparse.Namespace, server: uvicorn.Server) -> int:
    """Load the model, and again whenever model.json changes.

    Returns:
        1 where the first model can't be loaded; otherwise it goes on until it is cancelled.
    """
    seen: object = _NEVER
    threads = options.threads or available_threads()
    while True:
        now = await asyncio.to_thread(_fingerprint, options.model)
        if now != seen:
            try:
                predictor = await asyncio.to_thread(models.load, options.model, threads=threads)
                app.serve(predictor)
                log.info("model '%s' version %s is ready", options.name, predictor.manifest.version)
            except Exception as error:
                log.error("%s", error, exc_info=None if isinstance(error, LabError) else error)
                if seen is _NEVER:
                    server.should_exit = True
                    return 1
                app.metrics.load_failures.inc()
            seen = now
        await asyncio.sleep(_WATCH_SECONDS)


def _fingerprint(model: Path) -> tuple[int, int] | None:
    try:
        status = (model / manifests.FILE).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """The command; its return value is the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    options = parse(sys.argv[1:] if arguments is None else arguments)
    address = environ.get(LISTEN, "127.0.0.1:8080")
    try:
        import uvloop

        return uvloop.run(run(options, address))
    except LabError as error:
        log.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
