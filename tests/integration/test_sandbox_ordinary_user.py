"""The same tests once more as an ordinary user, with user namespaces, where root runs the suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_config import bubblewrap

UID = 54321
AGAIN = ("test_sandbox.py", "test_attacks_sandbox.py", "test_sandbox_warm.py", "test_sandbox_kernels.py")

# Becomes that user for good, then runs the tests.
BECOME = """
import os, sys
os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_all_of_it_as_an_ordinary_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests ran as an ordinary user already")
    allowed = Path("/proc/sys/user/max_user_namespaces").read_text().strip()
    if allowed == "0":
        pytest.skip("this kernel allows no user namespaces")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    os.chown(scratch, UID, UID)
    folder = Path(__file__).parent
    words = ["--dev-bind", "/", "/"]
    home = Path.home()
    inside = [path for path in bubblewrap.readable_here() if path.is_relative_to(home)]
    if inside:  # root's own home is closed to others, and the environment may lie in it
        words += ["--perms", "0755", "--tmpfs", str(home)]
        for path in bubblewrap.parents(map(str, inside)):
            words += ["--perms", "0755", "--dir", path] if Path(path).is_relative_to(home) else []
        for path in inside:
            words += ["--ro-bind", str(path), str(path)]
    # pytest's own folders above are root's alone
    words += ["--bind", str(scratch), "/mnt", "--chdir", str(bubblewrap.ROOT)]
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=/mnt/t"]
    run += [str(folder / name) for name in AGAIN if (folder / name).exists()]
    capabilities = [word for name in ("CAP_SETUID", "CAP_SETGID") for word in ("--cap-add", name)]
    done = subprocess.run(
        [bubblewrap.program(), *capabilities, *words, "--", sys.executable, "-c", BECOME.format(uid=UID), *run],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "HOME": "/mnt", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
