"""The learner's choice of slices."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_config.profiles import Holding, Machine, choices, chosen, gpu_for, offered
from hub_config.settings import OVERCOMMIT
from kpaas_lab.errors import LabError, NoCapacityError, SettingsError, UnknownSliceError
from kpaas_lab.slices import Isolation, SliceProfile, Text, Way, load_catalogue

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = load_catalogue(ROOT / "hub_config" / "slices.yaml")


def profile(name: str, **more: object) -> SliceProfile:
    values = {
        "name": name, "way": Way.CPU, "isolation": Isolation.PROCESS, "title": Text(en=name, ko=name),
        "purpose": Text(en="", ko=""), "cpus": 1, "memory_mib": 1024,
    }  # fmt: skip
    return SliceProfile.model_validate({**values, **more})


CPU = profile("cpu")
LARGE = profile("large", memory_mib=2048)
STAFF = profile("staff", groups=("staff",))
HALF = profile("half", way=Way.MPS, gpu_memory_mib=20, gpu_threads_percent=50)
THIRD = profile("third", way=Way.MPS, gpu_memory_mib=10, gpu_threads_percent=33)
MIG = profile("1g.10gb", way=Way.MIG, isolation=Isolation.HARDWARE, gpu_memory_mib=10)
ALL = (CPU, LARGE, STAFF, HALF, THIRD, MIG)
BIG = Machine(memory_mib=64 * 1024, gpu_memory_mib=(40, 40))


def names(entries: object) -> list[str]:
    return [getattr(entry, "name", None) or entry.profile.name for entry in entries]  # type: ignore[attr-defined]


def test_the_shipped_catalogue_offers_a_cpu_slice_on_a_small_machine_and_no_gpu() -> None:
    assert names(offered(SHIPPED, (), Machine(memory_mib=7 * 1024))) == ["cpu"]


def test_a_machine_of_8_gib_takes_three_learners_but_no_slice_larger_than_itself() -> None:
    machine = Machine(memory_mib=int(7900 * OVERCOMMIT), real_memory_mib=7900)
    entries = choices(SHIPPED, (), machine, [])
    assert [(entry.profile.name, entry.total) for entry in entries] == [("cpu", 3)]


def test_gpu_slices_only_where_mps_runs_and_never_ways_that_need_a_cluster() -> None:
    assert names(offered(ALL, (), Machine(memory_mib=9000))) == ["cpu", "large"]
    assert names(offered(ALL, (), BIG)) == ["cpu", "large", "half", "third"]


def test_a_groups_slice_is_for_that_group() -> None:
    assert "staff" not in names(offered(ALL, ("students",), BIG))
    assert "staff" in names(offered(ALL, ("students", "staff"), BIG))


def test_free_and_total() -> None:
    machine = Machine(memory_mib=4 * 1024)
    entries = {entry.profile.name: entry for entry in choices(ALL, (), machine, [Holding(LARGE), Holding(CPU)])}
    assert (entries["cpu"].free, entries["cpu"].total) == (1, 4)
    assert (entries["large"].free, entries["large"].total) == (0, 2)


def test_a_gpu_is_cut_by_memory_and_by_threads_and_each_gpu_by_itself() -> None:
    held = [Holding(HALF, 0), Holding(THIRD, 1)]
    entries = {entry.profile.name: entry for entry in choices(ALL, (), BIG, held)}
    assert (entries["half"].free, entries["half"].total) == (2, 4)  # one on each GPU
    assert entries["third"].total == 6
    assert entries["third"].free == 1 + 2  # 50 % and 67 % are left
    assert gpu_for(HALF, BIG, held) == 0
    assert gpu_for(HALF, BIG, [*held, Holding(HALF, 0)]) == 1
    assert gpu_for(HALF, BIG, [*held, Holding(HALF, 0), Holding(HALF, 1)]) is None
    assert gpu_for(CPU, BIG, held) is None


def test_without_options_the_first_cpu_slice() -> None:
    assert chosen({}, choices(ALL, (), BIG, [])).profile == CPU


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"slice": "2g.20gb"}, UnknownSliceError, "cpu, large"),
        ({"slice": "staff"}, UnknownSliceError, "No slice 'staff'"),
        ({"slice": "1g.10gb"}, UnknownSliceError, "No slice"),
        ({"slice": ""}, UnknownSliceError, "No slice"),
        ({"slice": "x" * 5000}, UnknownSliceError, "No slice"),
        ({"slice": ["cpu", "large"]}, SettingsError, "one slice's name"),
        ({"slice": {"name": "cpu"}}, SettingsError, "one slice's name"),
        ({"slice": "cpu", "memory": "1T"}, SettingsError, "no option 'memory'"),
        ({"slice": "cpu", "env": {"PATH": "/x"}}, SettingsError, "no option 'env'"),
        ({"x" * 10_000: 1}, SettingsError, "no option"),
    ],
)
def test_a_learner_can_post_anything(options: dict[str, object], error: type[LabError], says: str) -> None:
    with pytest.raises(error) as caught:
        chosen(options, choices(ALL, ("students",), BIG, []))
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


def test_when_all_is_in_use_it_says_what_is_free() -> None:
    entries = choices(ALL, (), Machine(memory_mib=3000), [Holding(CPU)])
    with pytest.raises(NoCapacityError, match=r"no room for the slice 'large' now\. Free now: cpu\."):
        chosen({"slice": "large"}, entries)
    with pytest.raises(NoCapacityError, match="Nothing is free now"):
        chosen({}, choices(ALL, (), Machine(memory_mib=2048), [Holding(LARGE)]))


held_lists = st.lists(st.sampled_from([CPU, LARGE, HALF, THIRD]), max_size=30)


@given(held_lists, st.integers(1024, 16 * 1024))
def test_what_is_offered_as_free_really_fits(wanted: list[SliceProfile], memory: int) -> None:
    """However people come, memory and GPUs are never promised twice."""
    machine = Machine(memory_mib=memory, gpu_memory_mib=(40,))
    held: list[Holding] = []
    for one in wanted:
        entry = next((entry for entry in choices(ALL, (), machine, held) if entry.profile == one), None)
        if entry is None or entry.free < 1:
            continue
        held.append(Holding(one, gpu_for(one, machine, held)))
        assert (held[-1].gpu is not None) == (one.way is Way.MPS)
    assert sum(holding.profile.memory_mib for holding in held) <= memory
    assert sum(holding.profile.gpu_memory_mib for holding in held) <= 40
    assert sum(holding.profile.gpu_threads_percent for holding in held) <= 100


def test_isolation_is_said_for_every_kind_and_not_overstated() -> None:
    said = {kind: kind.in_words().lower() for kind in Isolation}
    assert len(set(said.values())) == len(Isolation)
    assert "can stop the others" in said[Isolation.MEMORY]
    assert "turn it off" in said[Isolation.COOPERATIVE]
    assert "no isolation" in said[Isolation.NONE]
