"""Promised against observed: pure comparison, and a look at this very process."""

import resource
import subprocess
import sys

from kpaas_lab.i18n import use_language
from kpaas_lab.observation import Observed, SliceCheck, Verdict, observe
from kpaas_lab.slices import SliceProfile

PROFILE = SliceProfile.model_validate(
    {
        "name": "cpu",
        "way": "cpu",
        "isolation": "process",
        "title": {"en": "CPU", "ko": "CPU"},
        "purpose": {"en": "x", "ko": "x"},
        "cpus": 2,
        "memory_mib": 4096,
        "processes": 512,
    }
)


def test_each_resource_gets_a_verdict() -> None:
    check = SliceCheck(PROFILE, Observed(cpus=2, memory_mib=24_000, processes=100))
    assert {item.resource: item.verdict for item in check.comparisons} == {
        "CPU cores": Verdict.AS_PROMISED,
        "memory, MiB": Verdict.UNLIMITED,
        "processes": Verdict.LESS,
    }


def test_the_sandbox_keeps_the_memory_of_all_together() -> None:
    check = SliceCheck(PROFILE, Observed(cpus=2, memory_mib=10_240, processes=512), sandboxed=True)
    assert [item.verdict for item in check.comparisons] == [
        Verdict.AS_PROMISED,
        Verdict.WATCHED,
        Verdict.AS_PROMISED,
    ]


def test_a_gpu_slice_also_compares_its_memory() -> None:
    profile = PROFILE.model_copy(update={"gpu_memory_mib": 10240})
    check = SliceCheck(profile, Observed(cpus=2, memory_mib=4096, processes=512, gpus=("X",), gpu_memory_mib=10240))
    assert [item.verdict for item in check.comparisons] == [Verdict.AS_PROMISED] * 4


def test_rows_are_for_people() -> None:
    rows = SliceCheck(PROFILE, Observed(cpus=2, memory_mib=4096, processes=float("inf"))).rows()
    assert rows[1] == ["memory, MiB", "4,096", "4,096", "as promised"]
    assert rows[2][2] == "∞"
    with use_language("ko"):
        assert all(isinstance(cell, str) for row in SliceCheck(PROFILE, observe()).rows() for cell in row)


def test_a_limit_of_this_process_is_found() -> None:
    code = (
        "import resource, os\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({3 * 2**30}, {3 * 2**30}))\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from kpaas_lab.observation import observe\n"
        "seen = observe(); print(seen.memory_mib, seen.cpus)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    memory, cpus = map(float, answer.stdout.split())
    assert memory <= 3072
    assert cpus <= 1
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 3 * 2**30
