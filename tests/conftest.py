"""Fixtures that all tests share; each stands in a small module under tests/fixtures/."""

import os

# Two cores are shared by many processes here: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = [
    "tests.fixtures.disk",
    "tests.fixtures.market",
    "tests.fixtures.gateway",
    "tests.fixtures.platform",
    "tests.fixtures.postgres",
]
