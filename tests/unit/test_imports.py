"""The import rule of ARCHITECTURE.md."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "kubernetes_asyncio", "mlflow", "sqlalchemy", "jupyterhub", "transformers", "pandas", "matplotlib")
NEVER = {
    "lab": ("runtime", "market.app", "market.gateway", "grading"),
    "training": ("runtime", "serving", "lab", "market"),
    "serving": ("runtime", "training", "lab", "market"),
    "engines": ("runtime", "training", "serving", "lab", "market", "models", "widgets"),
    "workloads": ("engines", "slices", "lab"),
    "market": ("lab", "training", "engines", "widgets"),
}


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_nothing_climbs_back_up() -> None:
    package = ROOT / "kpaas_lab"
    for part, forbidden in NEVER.items():
        files = (
            [package / f"{part}.py"] if (package / f"{part}.py").exists() else sorted((package / part).rglob("*.py"))
        )
        for file in files:
            bad = {
                name for name in imported(file) for other in forbidden if f"{name}.".startswith(f"kpaas_lab.{other}.")
            }
            assert not bad, f"{file.relative_to(ROOT)} imports {sorted(bad)}"


def test_import_is_light() -> None:
    code = f"import sys, kpaas_lab; print([m for m in {HEAVY!r} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
