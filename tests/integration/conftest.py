"""Fixtures of the integration tests."""

from collections.abc import Iterator

import pytest

from tests.fixtures.classroom import Classroom, classroom


@pytest.fixture(scope="session", name="classroom")
def _classroom() -> Iterator[Classroom]:
    """One for all tests; learners are each test's own."""
    with classroom() as running:
        yield running
