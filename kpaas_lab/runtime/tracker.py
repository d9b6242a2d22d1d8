"""The process beside a run that writes to MLflow.

A process and not a thread: importing mlflow takes seconds of the interpreter's lock, a server that doesn't answer can
hold a thread for ever, and a thread makes every fork of the training (a DataLoader's workers) a risk. It reads what the
run has stored; so nothing is lost with it, and the next attempt's tracker goes on where this one ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from kpaas_lab.i18n import _
from kpaas_lab.training import folder

if TYPE_CHECKING:
    from kpaas_lab.tracking import Tracking

PATIENCE = 120.0  # seconds after the end of the training in which everything should be written
PATIENCE_STOPPED = 3.0  # the same, where the run was told to stop
QUIET = 1.0  # seconds of waiting that need no word
PERIOD, RETRY = 1.0, 10.0
POLL = 0.2


class Tracker:
    """The training's end of it: start the process, and tell it the exit code."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; not where KPAAS_LAB_TRACKING is "off"."""
        if os.environ.get("KPAAS_LAB_TRACKING") == "off":
            return
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kpaas_lab.runtime.tracker", str(self._path)],
                stdin=subprocess.PIPE,
                stdout=sys.stdout.fileno(),
                stderr=subprocess.STDOUT,
            )

    def finish(self, code: int) -> None:
        """Tell the exit code and wait until all is written; a tracker that can't finish doesn't fail the run."""
        if self._process is None or self._process.stdin is None:
            return
        patience = PATIENCE_STOPPED if code == 128 + signal.SIGTERM else PATIENCE
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(f"{code}\n".encode())
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(QUIET)
                return
            _say(_("Writing the run to MLflow …"))
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _say(_("Tracking: gave up after {seconds:g} s; the run isn't affected.").format(seconds=patience))


def main(path: Path) -> None:
    """Write to MLflow until the exit code comes on standard input, or the training is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the training decides when this ends
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the cores are the training's
        os.environ[name] = "1"
    ended: list[str] = []
    reader = threading.Thread(target=lambda: ended.append(sys.stdin.readline().strip()), daemon=True)
    reader.start()
    while not (ended or (path / folder.METRICS).exists()):
        reader.join(POLL)  # importing mlflow would slow the training's own imports
    tracking, problem = None, False
    while True:
        last = bool(ended)
        try:
            tracking = tracking or _tracking(path)
            tracking.write_metrics()
            if last:
                tracking.finish(int(ended[0]) if ended[0] else None)
            if problem:
                _say(_("Tracking: MLflow is written again."))
            problem = False
        except Exception as error:
            if not problem:
                _say_problem(error)
            problem = True
        if last:
            return
        reader.join(RETRY if problem else PERIOD)


def _tracking(path: Path) -> Tracking:
    from kpaas_lab.tracking import Tracking

    return Tracking(path)


def _say_problem(error: Exception) -> None:
    first = (str(error).splitlines() or [""])[0][:300]
    text = _("Tracking: MLflow can't be written ({kind}: {error}); the run isn't affected.")
    _say(text.format(kind=type(error).__name__, error=first))


def _say(line: str) -> None:
    """Into the run's log."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not longer than the training
    main(Path(sys.argv[1]))
