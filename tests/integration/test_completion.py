"""Completion in a real shell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
eval "$(_KPAAS_LAB_COMPLETE=source_bash kpaas-lab)"
complete -p kpaas-lab >/dev/null || exit 9
COMP_WORDS=({words}) COMP_CWORD={last}
$(complete -p kpaas-lab | sed -E 's/.*-F ([^ ]+).*/\\1/') kpaas-lab
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["kpaas-lab", "d"], ["doctor", "down"]),
        (["kpaas-lab", "status", "--j"], ["--json"]),
        (["kpaas-lab", "up", "--p"], ["--port", "--public-url"]),
    ],
)
@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_and_options(words: list[str], found: list[str]) -> None:
    programs = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT.format(words=" ".join(words), last=len(words) - 1)],
        capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "KPAAS_LAB_LANG": "en"},
    )  # fmt: skip
    assert sorted(done.stdout.split()) == found, done.stderr
