"""What a crash can leave running, and learners' sandboxes, which outlive the hub on purpose."""

from __future__ import annotations

import os

import psutil

from kpaas_lab.installation.layout import Layout
from kpaas_lab.installation.programs import MARK


def processes(layout: Layout) -> list[psutil.Process]:
    """The platform's own processes of this state folder (not the sandboxes), whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.uids().real == os.geteuid() and process.environ().get(MARK) == str(layout.home):
                found.append(process)
        except psutil.Error:
            continue  # gone, or not ours to look into
    return found


def sweep(layout: Layout) -> list[str]:
    """End what is left of the platform's processes; their names."""
    left = processes(layout)
    names = []
    for process in left:
        try:
            names.append(process.name())
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=5)
    return names


def learners(layout: Layout) -> tuple[str, ...]:
    """Who has a server that runs."""
    from hub_config import records

    found = [record for path in layout.sandboxes.glob("*.json") if (record := records.load(path))]
    return tuple(sorted(record.name for record in found if records.poll(record) is None))


def end_sandboxes(layout: Layout) -> list[str]:
    """End all learners' servers; the learners' names."""
    from hub_config import records

    return records.stop_all(layout.home)
