"""Publishing a listing: the endpoint is examined first, then the version is stored."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool

from kpaas_lab.market import store
from kpaas_lab.market.conformance import Examiner
from kpaas_lab.market.database import writing
from kpaas_lab.market.models import Listing
from kpaas_lab.market.schemas import PublishBody
from kpaas_lab.market.services import Services


async def publish(shared: Services, publisher: str, body: PublishBody) -> Listing:
    """The listing with its new version, stored.

    Raises:
        NotConformantError: the endpoint failed a check; nothing is stored.
    """
    model = body.model or body.endpoint
    finding = await Examiner(
        shared.settings.learners_dir, publisher, body.endpoint, model, schema=body.schema_, example=body.example
    ).examine()
    draft = store.Draft(
        title=body.title,
        description=body.description,
        endpoint=body.endpoint,
        protocol=body.protocol,
        model=model,
        schema=finding.schema,
        example=finding.example,
        conformance=finding.record(),
        plans=[plan.terms() for plan in body.plans],
    )

    def save() -> Listing:
        with writing(shared.engine) as session:
            return store.publish(session, publisher, body.name, draft)

    return await run_in_threadpool(save)
