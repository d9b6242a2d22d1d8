"""`make bench`: run every bench (or those named as arguments) and print one table."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import traceback
from pathlib import Path

from tests.bench.table import Row


def main(names: list[str]) -> int:
    """Run the benches; a bench that can't run says why in its row."""
    found = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    unknown = set(names) - set(found)
    if unknown:
        print(f"No bench {', '.join(sorted(unknown))}. Benches: {', '.join(found)}.", file=sys.stderr)
        return 2
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()} {platform.machine()}\n")
    print("| what | here | peer | peer's figure | goal |\n|---|---|---|---|---|", flush=True)
    failed = 0
    for name in names or found:
        try:
            for row in importlib.import_module(f"tests.bench.bench_{name}").rows():
                assert isinstance(row, Row)
                print(f"| {row.what} | {row.ours} | {row.peer} | {row.theirs} | {row.goal} |", flush=True)
        except Exception:  # the other benches' figures are worth having
            failed = 1
            print(f"| {name} | failed, its traceback stands beside this | | | |", flush=True)
            traceback.print_exc()
    return failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
