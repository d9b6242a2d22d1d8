"""The gateway's documents against the gateway: schemathesis makes the requests, bounded."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kpaas_lab import models
from kpaas_lab.market.database import writing
from kpaas_lab.market.models import Listing
from tests.fixtures.gateway import Gateway, Lab, Subscribed, version
from tests.integration.model_server import model_server
from tests.waiting import until

EXAMPLES = 12
CHECKS = [
    checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@pytest.fixture(scope="module")
def api(shared_lab: Lab) -> Subscribed:
    return shared_lab.listing()


def fuzz(document: dict[str, Any], server: str, gateway: Gateway, headers: dict[str, str]) -> Counter[str]:
    """Requests made from every operation, each answer checked; how many there were of each status."""
    found: Counter[str] = Counter()
    with gateway.client() as client:
        for result in schemathesis.openapi.from_dict(document).get_all_operations():
            operation = result.ok()

            @settings(
                max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy())
            def run(case: schemathesis.Case) -> None:
                given_ = case.as_transport_kwargs(base_url=f"http://gateway{server}", headers=headers)
                answer = client.request(
                    given_["method"], given_["url"], headers=given_["headers"], params=given_.get("params"),
                    json=given_.get("json"), content=given_.get("data"),
                )  # fmt: skip
                found[f"{case.operation.label} {answer.status_code}"] += 1
                case.validate_response(schemathesis.Response.from_any(answer), checks=CHECKS)

            run()
    return found


def test_the_gateways_document(gateway: Gateway, api: Subscribed) -> None:
    with gateway.client() as client:
        document = client.get("/services/api/openapi.json").json()
    found = fuzz(document, "/services/api", gateway, api.headers)
    assert len(document["paths"]) == 10
    assert "GET /healthz 200" in found
    assert any(label.endswith(("403", "404")) for label in found), found


def test_a_listings_document(gateway: Gateway, api: Subscribed) -> None:
    with gateway.client() as client:
        document = client.get("/services/api/ann/digits/openapi.json").json()
    found = fuzz(document, "/services/api/ann/digits", gateway, api.headers)
    assert found["POST /v2/models/m/infer 200"] >= EXAMPLES // 2, found


def double(x: np.ndarray) -> np.ndarray:
    return 2 * x


def test_a_real_models_document(gateway: Gateway, shared_lab: Lab, tmp_path: Path) -> None:
    """The model server of a published endpoint, described by what it says of itself."""
    models.save(double, tmp_path / "model", example=np.array([[1.0, 2.0], [3.0, 4.0]]))
    api = shared_lab.listing("gil", "double", endpoint="double")
    home = shared_lab.learners / "gil" / ".kpaas-lab" / "workloads" / "double"
    home.parent.mkdir(parents=True)
    with model_server(home, tmp_path / "model") as server, gateway.client(headers=api.headers) as client:
        until(lambda: client.get(f"{api.path}/health/ready").status_code == 200, 60, "a model", log=server.log)
        metadata = client.get(f"{api.path}/models/m").json()
        newer = version(2, "double")
        newer.schema = {part: metadata[part] for part in ("inputs", "outputs")}
        tensor = metadata["inputs"][0] | {"shape": [1, 2], "data": [1.0, 2.5]}
        newer.example = {"inputs": [tensor]}
        with writing(shared_lab.engine) as session:
            listing = session.get(Listing, api.listing_id)
            assert listing is not None
            listing.versions.append(newer)
        document = client.get("/services/api/gil/double/openapi.json").json()
        found = fuzz(document, "/services/api/gil/double", gateway, api.headers)
        assert found["GET /v2/models/m 200"] >= 1, found
        assert found["POST /v2/models/m/infer 200"] + found["POST /v2/models/m/infer 400"] >= EXAMPLES // 2, found
        answer = gateway.call(api, newer.example)
        assert answer.json()["outputs"][0]["data"] == [2.0, 5.0]
