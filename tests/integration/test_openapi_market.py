"""The OpenAPI document is what the market does: schemathesis asks all that it allows, and much that it doesn't."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fixtures.market import Site

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


def test_the_document_is_what_is_answered(market_site: Site) -> None:
    market_site.publish("ann", "digits")
    with market_site.person("fuzz") as person:
        token = person.headers["Authorization"]
        person.post("/listings/ann/digits/subscriptions", json={"plan": "free"})
    schema = schemathesis.openapi.from_url(f"{market_site.api}/openapi.json")
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS, headers={"Authorization": token})

        ask()
    assert asked > 100
