"""The engines that the contract suite runs against: each gives an engine, and a folder its workloads can see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kpaas_lab.engines.base import Engine
from kpaas_lab.engines.local import LocalEngine
from kpaas_lab.slices import Isolation, SliceProfile, Text, Way

ANY = Text(en="for tests", ko="시험용")


def cpu_slice(name: str = "cpu", memory_mib: int = 2048, cpus: float = 1) -> SliceProfile:
    return SliceProfile(
        name=name,
        way=Way.CPU,
        isolation=Isolation.PROCESS,
        title=ANY,
        purpose=ANY,
        cpus=cpus,
        memory_mib=memory_mib,
        processes=64,
    )


CATALOGUE = (
    cpu_slice(),
    cpu_slice("small", 256, 0.5),
    cpu_slice("tiny", 256, 0.25),
    SliceProfile(
        name="1g.10gb",
        way=Way.MIG,
        isolation=Isolation.HARDWARE,
        title=ANY,
        purpose=ANY,
        cpus=1,
        memory_mib=1024,
        gpu_memory_mib=10240,
    ),
)


@dataclass
class Bench:
    """An engine under test.

    Attributes:
        make: the engine; a second call gives another one of the same home, as a second kernel has it.
        home: the lab's home.
        python: the interpreter inside a workload.
    """

    make: Callable[[], Engine]
    home: Path
    python: str


def local(home: Path, python: str) -> Bench:
    return Bench(make=lambda: LocalEngine(home, CATALOGUE, log_limit=1 << 20), home=home, python=python)


ENGINES = {"local": local}
