"""A run on disk: `<home>/runs/<name>/`.

run.json          what was asked for: function, data, slice, nodes, seed; written once, before the Job is created
params.json       the function's parameters
source.py         the function
environment.json  digest and list of the installed distributions, written by the run itself
metrics.jsonl     one line for each report
checkpoints/      step-<number>/
model/            what the function returned (kpaas_lab/models)
logs/             the logs of earlier attempts
tracking.json     its MLflow run
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RUN, PARAMS, SOURCE, ENVIRONMENT, METRICS = "run.json", "params.json", "source.py", "environment.json", "metrics.jsonl"
CHECKPOINTS, MODEL, LOGS, TRACKING = "checkpoints", "model", "logs", "tracking.json"

DIR_VARIABLE, ATTEMPT_VARIABLE = "KPAAS_LAB_RUN_DIR", "KPAAS_LAB_ATTEMPT"


def current(environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder of the run that this process belongs to; None outside a run."""
    text = (os.environ if environ is None else environ).get(DIR_VARIABLE)
    return Path(text) if text else None


def rank(environ: Mapping[str, str] | None = None) -> int:
    """Which of a run's nodes this process is."""
    return int((os.environ if environ is None else environ).get("KPAAS_LAB_NODE_RANK", "0"))


def read_lines(text: str) -> list[dict[str, Any]]:
    r"""The records of metrics.jsonl; a line that a kill cut short is left out.

    Example:
        >>> read_lines('{"step": 1}\n{"st')
        [{'step': 1}]
    """
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def merge(records: Iterable[Mapping[str, Any]]) -> Sequence[dict[str, Any]]:
    """One story of all attempts: where a later one went back to a step, what earlier ones reported from there is gone.

    Example:
        >>> merge([{"attempt": 1, "step": 1}, {"attempt": 1, "step": 2, "loss": 9}, {"attempt": 2, "step": 2}])
        [{'step': 1}, {'step': 2}]
    """
    story: list[dict[str, Any]] = []
    attempt = 0
    for record in records:
        if record.get("attempt", 1) > attempt:
            attempt = record.get("attempt", 1)
            story = [earlier for earlier in story if earlier["step"] < record["step"]]
        story.append({name: value for name, value in record.items() if name not in {"attempt", "time"}})
    return story
