"""Counts on their way into the database, and in a spool whose disk is full: never twice, none lost."""

import contextlib
import datetime as dt
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kpaas_lab.market.gateway.metering import Batch, Row, apply, forget
from kpaas_lab.market.gateway.spool import Spool
from kpaas_lab.market.models import UsageBatch
from tests.fixtures.gateway import Lab

DAY = dt.date(2026, 11, 23)


def test_a_full_disk_loses_no_earlier_record(tmp_path: Path) -> None:
    """Real: a process whose files may not grow beyond 4 KiB (RLIMIT_FSIZE)."""
    code = """
import resource, signal, sys
from pathlib import Path
from kpaas_lab.market.gateway.spool import Spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path(sys.argv[1]))
spool.append(b"a" * 3000)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    spool.append(b"b" * 3000)
except OSError as error:
    print("refused", error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.append(b"c")
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused")
    spool = Spool(tmp_path)
    assert spool.take() + spool.take() == [b"a" * 3000, b"c"]
    assert spool.damaged == 0


@contextlib.contextmanager
def whenever(_batches: Sequence[Batch]) -> Iterator[None]:
    yield


def test_a_batch_counts_once_however_often_it_comes(sqlite_lab: Lab) -> None:
    api = sqlite_lab.listing()
    who = (api.key_id, api.subscription, 1, DAY)
    batches = [Batch(f"life-{n}", {who: Row(2, 1, 1, 10, 20, Counter({5: 1, 6: 1}))}) for n in range(3)]
    seen: list[str] = []

    @contextlib.contextmanager
    def committing(new: Sequence[Batch]) -> Iterator[None]:
        seen.extend(batch.id for batch in new)
        yield

    apply(sqlite_lab.engine, batches[:2], committing)
    apply(sqlite_lab.engine, batches, committing)
    apply(sqlite_lab.engine, batches, committing)
    assert seen == ["life-0", "life-1", "life-2"]
    assert sqlite_lab.usage(api.key_id) == {
        "calls": 6, "errors": 3, "rejected": 3, "bytes_in": 30, "bytes_out": 60, "timed": 6,
    }  # fmt: skip
    forget(sqlite_lab.engine, ["life-0", "life-1", "life-2"])
    with Session(sqlite_lab.engine) as session:
        assert session.scalar(select(func.count()).select_from(UsageBatch)) == 0


def test_a_crash_before_the_commit_counts_nothing(sqlite_lab: Lab) -> None:
    api = sqlite_lab.listing()
    batch = Batch("life-1", {(api.key_id, api.subscription, 1, DAY): Row(calls=1)})

    @contextlib.contextmanager
    def crash(_new: Sequence[Batch]) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        apply(sqlite_lab.engine, [batch], crash)
    assert sqlite_lab.usage()["calls"] == 0
    apply(sqlite_lab.engine, [batch], whenever)
    assert sqlite_lab.usage()["calls"] == 1


def test_usage_of_a_key_that_is_gone_holds_up_no_other(sqlite_lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    api = sqlite_lab.listing()
    gone = ("0" * 32, "s", 1, DAY)
    batch = Batch("life-1", {gone: Row(calls=5), (api.key_id, api.subscription, 1, DAY): Row(calls=1)})
    apply(sqlite_lab.engine, [batch], whenever)
    assert sqlite_lab.usage()["calls"] == 1
    assert "no longer in the database" in caplog.text
