"""When an idle server is stopped. Loaded by `python -m jupyterhub_idle_culler --config`, a service that the hub starts.

A server with a run or an endpoint is not idle: `kpaas_lab/server_extension.py` reports it as activity.
"""

from __future__ import annotations

import ctypes
import os
import signal
from datetime import timedelta
from typing import Any

PR_SET_PDEATHSIG = 1
# A hub that was killed leaves no culler behind: the next one starts its own.
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

GPU_SLICES = frozenset(filter(None, os.environ.get("KPAAS_LAB_GPU_SLICES", "").split(",")))
GPU_SECONDS = int(os.environ.get("KPAAS_LAB_IDLE_GPU_SECONDS", "900"))


def too_long(*, inactive: timedelta | None, inactive_limit: float, server: dict[str, Any], **_rest: object) -> bool:
    """Whether a server was idle for longer than its slice allows; a GPU is given back sooner."""
    holds_gpu = (server.get("user_options") or {}).get("slice") in GPU_SLICES
    limit = min(inactive_limit, GPU_SECONDS) if holds_gpu else inactive_limit
    return inactive is not None and inactive.total_seconds() >= limit


if "get_config" in globals():  # where the culler loads it, and not where a test imports it
    get_config().IdleCuller.cull_arbiter_hook = too_long  # type: ignore[name-defined]  # noqa: F821
