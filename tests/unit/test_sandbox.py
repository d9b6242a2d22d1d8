"""The sandbox's pure parts: bubblewrap's command line, limits, the system call filter, homes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hub_config import bubblewrap, homes, sandbox, sandbox_init, seccomp
from hub_config.bubblewrap import Mode, View
from kpaas_lab.errors import SettingsError
from kpaas_lab.slices import SliceProfile

TEXT = {"en": "-", "ko": "-"}
CPU = SliceProfile.model_validate(
    {"name": "cpu", "way": "cpu", "isolation": "process", "title": TEXT, "purpose": TEXT, "cpus": 2, "memory_mib": 1024}
)
GPU = CPU.model_copy(update={"name": "mps-25", "gpu_memory_mib": 10240})
STATE = Path("/srv/state")
VIEW = View(
    name="ann",
    home=STATE / "learners" / "ann",
    uid=200_000,
    gid=200_000,
    profile=CPU,
    readable=[Path("/opt/env"), Path("/srv/app/kpaas_lab")],
    hidden=STATE,
    files={"/etc/passwd": 9},
)
TOP = {"/bin": "usr/bin", "/lib": "", "/lib32": None}


def words(view: View = VIEW, mode: Mode = Mode.USER_NAMESPACE) -> str:
    return " ".join(bubblewrap.arguments(view, mode, exists=TOP))


def changed(**values: object) -> View:
    from dataclasses import replace

    return replace(VIEW, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", list(Mode))
def test_only_the_home_is_writable(mode: Mode) -> None:
    written = words(mode=mode)
    assert written.count("--bind ") == 1
    assert "--bind /srv/state/learners/ann /home/ann" in written
    assert "--dev-bind" not in written
    assert written.endswith("--remount-ro /dev --remount-ro / --chdir /")


@pytest.mark.parametrize("mode", list(Mode))
def test_every_namespace_but_the_network_is_its_own(mode: Mode) -> None:
    written = words(mode=mode)
    for kind in ("pid", "ipc", "uts", "cgroup-try"):
        assert f"--unshare-{kind}" in written
    assert "--unshare-net" not in written
    assert "--die-with-parent" not in written  # it outlives the hub
    assert "--as-pid-1" in written
    assert "--cap-drop ALL" in written


def test_a_user_namespace_forbids_more_of_them() -> None:
    assert "--unshare-user --disable-userns" in words()
    assert "--cap-add" not in words()
    assert "--unshare-user" not in words(mode=Mode.OWN_UID)


def test_no_variable_and_no_secret_can_stand_in_it() -> None:
    assert "--setenv" not in words()


def test_links_of_the_system_stay_links() -> None:
    written = words()
    assert "--symlink usr/bin /bin" in written
    assert "--ro-bind /lib /lib " in written
    assert "/lib32" not in written


def test_folders_above_are_open_to_the_learner() -> None:
    assert "--perms 0755 --dir /srv/app " in words()


def test_the_state_is_covered_where_something_around_it_is_shown() -> None:
    assert "--tmpfs /srv/state" not in words()
    around = words(changed(readable=[Path("/srv")]))
    assert around.index("--ro-bind /srv /srv") < around.index("--tmpfs /srv/state") < around.index("--bind /srv/state")


def test_devices_only_for_a_gpu_slice() -> None:
    assert "nvidia0" not in words()
    assert "--bind /run/mps" not in words(changed(mps_pipe=Path("/run/mps")))
    gpu = words(changed(profile=GPU, mps_pipe=Path("/run/mps")))
    assert "--dev-bind-try /dev/nvidia0 /dev/nvidia0" in gpu
    assert "--bind /run/mps /run/mps" in gpu


def test_a_learners_line_in_the_made_files() -> None:
    files = bubblewrap.made_files("ann", 200_000, 200_000, "10.0.0.1 registry")
    assert "ann:x:200000:200000:ann:/home/ann:/bin/bash\n" in files["/etc/passwd"]
    assert "10.0.0.1 registry\n" in files["/etc/hosts"]
    assert '"ipc"' in files["/etc/jupyter/jupyter_server_config.json"]


def test_of_this_repository_only_the_readable_part_is_shown(tmp_path: Path) -> None:
    root = tmp_path / "clone"
    for name in ("kpaas_lab", "courses", "tests", ".git"):
        (root / name).mkdir(parents=True)
    environment = tmp_path / "env"
    packages = environment / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (environment / "pyvenv.cfg").touch()
    found = bubblewrap.python_paths(["", str(root), str(packages)], ["/usr", str(environment)], root)
    assert environment in found
    assert {root / "kpaas_lab", root / "courses"} <= set(found)
    assert not {root, root / ".git", root / "tests"} & set(found)


def test_limits_follow_the_slice() -> None:
    limits = sandbox.limits(CPU, "ann", [0, 1, 2, 3])
    assert limits["memory"] == 1 << 30
    assert len(limits["cpus"]) == 2
    assert sandbox.limits(CPU, "ann", [0, 1])["cpus"] == []
    assert limits["data"] > limits["memory"]
    assert sandbox.limits(GPU, "ann", [0])["data"] == 0
    assert {tuple(sandbox.limits(CPU, name, range(8))["cpus"]) for name in ("ann", "bob", "eve")} != {(0, 1)}


def interpret(code: bytes, number: int, arch: int, argument: int) -> int:
    """Run a filter as the kernel would: what it answers for that call."""
    steps = [struct.unpack_from("<HBBI", code, at) for at in range(0, len(code), 8)]
    data = struct.pack("<IIQQQQ", number, arch, 0, argument, 0, 0)
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, value = steps[at]
        at += 1
        if operation == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == seccomp.RETURN:
            return int(value)
        else:
            tests = {seccomp.EQUAL: accumulator == value, seccomp.AT_LEAST: accumulator >= value}
            tests[seccomp.ANY_BIT] = bool(accumulator & value)
            at += if_true if tests[operation] else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_denies_what_it_lists_and_nothing_else(machine: str) -> None:
    code = seccomp.program(machine)
    assert code is not None
    column, arch = seccomp.ARCHITECTURES[machine]
    denied = {both[column] for both in (*seccomp.DENIED.values(), *seccomp.ABSENT.values())} - {None}
    for number in range(600):
        allowed = interpret(code, number, arch, 0) == seccomp.ALLOW
        assert allowed == (number not in denied), number
    for number in (seccomp.CLONE[column], seccomp.UNSHARE[column]):
        assert interpret(code, number, arch, 17) == seccomp.ALLOW
        for flag in (0x10000000, 0x20000, 0x40000000 | 17):
            assert interpret(code, number, arch, flag) != seccomp.ALLOW
    assert interpret(code, 0, 0x40000003, 0) != seccomp.ALLOW  # 32-bit calls have other numbers


def test_the_filter_lets_a_gpus_driver_make_shared_memory() -> None:
    code = seccomp.program("x86_64", shared_memory_files=True)
    assert code is not None
    assert interpret(code, 319, 0xC000003E, 0) == seccomp.ALLOW


def test_x32_calls_are_denied() -> None:
    code = seccomp.program("x86_64")
    assert code is not None
    assert interpret(code, 0x40000000 | 39, 0xC000003E, 0) != seccomp.ALLOW


def test_which_process_goes_when_memory_is_short() -> None:
    usage = sandbox_init.Usage
    server, kernel, shell = usage(2, 90 << 20, "server"), usage(9, 300 << 20, "kernel"), usage(12, 2 << 20, "sh")
    assert sandbox_init.choose([kernel, server, shell], 2) == kernel
    assert sandbox_init.choose([server, shell], 2) == server
    assert sandbox_init.choose([], 2) is None


@pytest.fixture
def course(tmp_path: Path) -> Path:
    source = tmp_path / "course"
    (source / "lesson").mkdir(parents=True)
    (source / "lesson" / "a.ipynb").write_text("new")
    (source / "lesson" / "run.sh").write_text("#!/bin/sh\n")
    (source / "lesson" / "run.sh").chmod(0o755)
    (source / "link").symlink_to("/etc/passwd")
    return source


def test_place_tree_copies_and_keeps_what_is_there(course: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "courses" / "ai" / "lesson").mkdir(parents=True)
    (home / "courses" / "ai" / "lesson" / "a.ipynb").write_text("the learner's")
    made = homes.place_tree(course, home, "courses/ai", 0)
    assert made == ["courses/ai/lesson/run.sh"]
    assert (home / "courses" / "ai" / "lesson" / "a.ipynb").read_text() == "the learner's"
    assert (home / "courses" / "ai" / "lesson" / "run.sh").stat().st_mode & 0o777 == 0o755
    assert not (home / "courses" / "ai" / "link").is_symlink()
    assert homes.place_tree(course, home, "courses/ai", 0) == []
    assert not list(home.rglob("*~"))


def test_place_tree_goes_round_what_is_in_its_way(course: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "courses").write_text("a file of the learner's")
    assert homes.place_tree(course, home, "courses/ai", 0) == []
    assert (home / "courses").read_text() == "a file of the learner's"


@pytest.mark.parametrize("relative", ["", "/etc", "../bob", "a/../../bob", "."])
def test_place_tree_stays_in_the_home(course: Path, tmp_path: Path, relative: str) -> None:
    with pytest.raises(SettingsError):
        homes.place_tree(course, tmp_path, relative, 0)
