"""`python -m kpaas_lab.engines.restore`: start again what a restart of the machine or of the sandbox ended."""

from __future__ import annotations

import sys

from kpaas_lab.engines.local import LocalEngine
from kpaas_lab.errors import LabError
from kpaas_lab.settings import from_environment
from kpaas_lab.slices import load_catalogue


def main() -> int:
    """Restore the Services of the home in the environment; the exit status."""
    try:
        settings = from_environment()
        if settings.engine != "local" or not settings.home.exists():
            return 0
        names = LocalEngine(settings.home, load_catalogue(settings.slices_file)).restore()
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if names:
        sys.stdout.write(f"restored: {', '.join(names)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
