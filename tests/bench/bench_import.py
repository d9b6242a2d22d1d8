"""What `import kpaas_lab` costs a notebook."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator

from tests.bench.table import Row

TIMES = 9
CODE = "import time; t = time.perf_counter(); {}; print((time.perf_counter() - t) * 1000)"


def rows() -> Iterator[Row]:
    """Medians of new interpreters, caches warm; the peer is what every notebook imports anyway."""
    numpy = _median("import numpy")
    yield Row("import kpaas_lab, ms", f"{_median('import kpaas_lab'):.0f}", "import numpy", f"{numpy:.0f}", "<= 150")
    yield Row(
        "from kpaas_lab import Lab, ms", f"{_median('from kpaas_lab import Lab'):.0f}", "import numpy", f"{numpy:.0f}"
    )


def _median(statement: str) -> float:
    command = [sys.executable, "-c", CODE.format(statement)]
    times = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _time in range(TIMES + 1)
    ]
    return statistics.median(times[1:])
