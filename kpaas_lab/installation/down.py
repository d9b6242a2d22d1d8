"""Stop a platform from outside."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from kpaas_lab.errors import WaitTimeoutError
from kpaas_lab.i18n import _
from kpaas_lab.installation import leftovers, lock
from kpaas_lab.installation.layout import Layout

PATIENCE = 60.0  # more than `up` itself takes at most


def _wait_until_free(layout: Layout, seconds: float, say: Callable[[str], None]) -> bool:
    deadline = time.monotonic() + seconds
    told = time.monotonic()
    while lock.is_held(layout):
        now = time.monotonic()
        if now > deadline:
            return False
        if now - told > 3:
            told = now
            say(_("Still stopping …"))
        time.sleep(0.05)
    return True


def run(layout: Layout, say: Callable[[str], None]) -> bool:
    """Stop everything, the learners' sandboxes too; False where nothing ran.

    Raises:
        WaitTimeoutError: something doesn't end.
    """
    held = lock.is_held(layout)
    if held:
        say(_("Stopping …"))
        running = lock.read(layout)
        process = running.process() if running else None
        if process:
            process.send_signal(signal.SIGTERM)
        if not _wait_until_free(layout, PATIENCE, say):
            if process:
                process.kill()
            leftovers.sweep(layout)
            if not _wait_until_free(layout, 5, say):
                left = ", ".join(str(one.pid) for one in leftovers.processes(layout))
                raise WaitTimeoutError(
                    _("These processes do not end: {pids}").format(pids=left), hint=_("End them by hand, with kill -9.")
                )
    # After a crash some may be left although nobody holds the lock.
    swept = leftovers.sweep(layout)
    sandboxes = leftovers.end_sandboxes(layout)
    if sandboxes:
        say(_("Learners' servers stopped: {names}").format(names=", ".join(sorted(sandboxes))))
    return bool(held or swept or sandboxes)
