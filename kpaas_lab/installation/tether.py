"""A process that dies with its parent."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(death: signal.Signals) -> None:
    """Get a signal when the parent dies: kept across exec, not inherited by children.

    Raises:
        OSError: the kernel refuses.
    """
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(death), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it died a moment ago
        os.kill(os.getpid(), death)
