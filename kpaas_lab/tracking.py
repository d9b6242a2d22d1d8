"""A run in MLflow: parameters, batched metrics, tags, and its model as a registered version.

The store is `<home>/mlflow.db`, or what MLFLOW_TRACKING_URI names. Imported by `runtime/tracker` only: mlflow takes
seconds to import.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kpaas_lab.engines.records import read_json, write_json
from kpaas_lab.training import folder

BATCH = 1000  # metrics in one call, MLflow's own limit (REST API, "Log Batch")
EXPERIMENT = "kpaas-lab"

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


def uri(home: Path, environ: Mapping[str, str]) -> str:
    """The tracking store.

    Example:
        >>> uri(Path("/home/ann/.kpaas-lab"), {})
        'sqlite:////home/ann/.kpaas-lab/mlflow.db'
    """
    return environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"


class Tracking:
    """One run in MLflow; made again for a later attempt, it goes on in the same MLflow run.

    Args:
        path: the run's folder.

    Raises:
        Exception: whatever mlflow raises: the store can't be reached, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._record = read_json(path / folder.RUN)
        home = path.parent.parent
        place = uri(home, os.environ)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        with _alone(home):  # the first client makes the tables
            self._client = MlflowClient(place, place)
            self._experiment = self._find_experiment()
        known = read_json(path / folder.TRACKING)
        self._written = int(known.get("written", 0)) if known.get("uri") == place else 0
        self._run_id = known["run_id"] if known.get("uri") == place else self._create()
        self._uri = place
        self._client.update_run(self._run_id, "RUNNING")
        self._keep()

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        return str(found.experiment_id if found else self._client.create_experiment(EXPERIMENT))

    def _create(self) -> str:
        from mlflow.entities import Param, RunTag

        environment = read_json(self._path / folder.ENVIRONMENT)
        tags = {
            "seed": self._record["seed"],
            "slice": os.environ.get("KPAAS_LAB_SLICE") or self._record["slice"] or "",
            "nodes": self._record["nodes"],
            "data": self._record["data"] or "",
            "function": self._record["function"],
            "environment": environment.get("digest", ""),
        }
        run = self._client.create_run(self._experiment, run_name=self._path.name)
        params = read_json(self._path / folder.PARAMS)
        self._client.log_batch(
            run.info.run_id,
            params=[Param(name, str(value)[:6000]) for name, value in params.items()],
            tags=[RunTag(name, str(value)) for name, value in tags.items()],
        )
        return str(run.info.run_id)

    def _keep(self) -> None:
        write_json(self._path / folder.TRACKING, {"uri": self._uri, "run_id": self._run_id, "written": self._written})

    def write_metrics(self) -> None:
        """Write what was reported since the last time, in batches."""
        from mlflow.entities import Metric

        path = self._path / folder.METRICS
        if not path.exists():
            return
        records = folder.read_lines(path.read_text(encoding="utf-8"))
        metrics = [Metric(*one) for record in records[self._written :] for one in points(record)]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + BATCH])
        if len(records) > self._written:
            self._written = len(records)
            self._keep()

    def finish(self, code: int | None) -> None:
        """Write the rest, register the model and close the run.

        Args:
            code: the training's exit code; None where it was killed.
        """
        self.write_metrics()
        if code == 0 and (self._path / folder.MODEL / "model.json").exists():
            self._register()
        status = {0: "FINISHED", None: "KILLED", 143: "KILLED"}.get(code, "FAILED")
        self._client.set_terminated(self._run_id, status)

    def _register(self) -> None:
        from mlflow.exceptions import MlflowException

        name = self._record["function"]
        with contextlib.suppress(MlflowException):  # it is there already
            self._client.create_registered_model(name)
        source = (self._path / folder.MODEL).as_uri()
        self._client.create_model_version(name, source, self._run_id, tags={"run": self._path.name})


def points(record: Mapping[str, Any]) -> Iterator[tuple[str, float, int, int]]:
    """The metrics of one report: name, value, milliseconds, step.

    Example:
        >>> list(points({"step": 3, "total": 9, "loss": 0.5, "time": 12.25, "attempt": 1}))
        [('loss', 0.5, 12250, 3)]
    """
    moment = int(record.get("time", time.time()) * 1000)
    for name, value in record.items():
        if name not in {"step", "total", "time", "attempt"}:
            yield name, float(value), moment, int(record["step"])


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    with (home / "mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
