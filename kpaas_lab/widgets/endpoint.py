"""An endpoint: how it is, what it takes and gives, how to call it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kpaas_lab.errors import LabError
from kpaas_lab.i18n import _
from kpaas_lab.widgets.markup import Html, card, code, row, soft, table, tag
from kpaas_lab.widgets.phases import duration, phase_pill
from kpaas_lab.workloads import Phase, Status

if TYPE_CHECKING:
    from kpaas_lab.serving import Endpoint


def endpoint_html(endpoint: Endpoint) -> Html:
    """A card; an endpoint that doesn't answer now has one too."""
    try:
        status = endpoint.status
    except LabError as error:
        return card(row(tag("h4", endpoint.name)), tag("p", str(error)))
    metadata, note = _answers(endpoint, status)
    return card(
        row(
            tag("h4", endpoint.name),
            phase_pill(status.phase, _tone(status)),
            soft(_("{count} ready").format(count=replicas(status))),
            soft(_("slice {name}").format(name=status.slice)) if status.slice else None,
            soft(_("for {time}").format(time=since(status))) if status.started else None,
        ),
        tag("p", note) if note else None,
        _schema(metadata) if metadata else None,
        code(_("Call it from another notebook"), f'lab.endpoints["{endpoint.name}"].predict(inputs)'),
        code(
            _("Offer it on the marketplace"),
            f'lab.publish("{endpoint.name}", title="…", plans=[Plan("free", calls_per_day=1000)])',
        ),
    )


def _answers(endpoint: Endpoint, status: Status) -> tuple[Mapping[str, Any], str]:
    """What it says of itself, and a sentence where it can't."""
    if not status.ready:
        return {}, status.message or _("It doesn't answer yet: endpoint.wait_ready(), or see endpoint.logs().")
    try:
        return endpoint.metadata(), status.message
    except LabError as error:  # it stopped between the two questions
        return {}, str(error)


def replicas(status: Status) -> str:
    """How many answer, of how many.

    Example:
        >>> replicas(Status(name="d", kind="Service", phase=Phase.RUNNING, created=datetime.now(UTC), ready=1,
        ...                 addresses=("unix:/a", "unix:/b")))
        '1 / 2'
    """
    return f"{status.ready} / {len(status.addresses)}"


def since(status: Status) -> str:
    """How long it has been running."""
    return duration((datetime.now(UTC) - status.started).total_seconds()) if status.started else ""


def _tone(status: Status) -> str | None:
    return "good" if status.phase is Phase.RUNNING and status.ready == len(status.addresses) else None


def _schema(metadata: Mapping[str, Any]) -> Html:
    """Inputs and outputs; -1 in a shape is any number of rows."""
    rows = [
        [way, tensor.get("name", ""), tensor.get("datatype", ""), _shape(tensor.get("shape", ()))]
        for way, tensors in ((_("takes"), metadata.get("inputs", ())), (_("gives"), metadata.get("outputs", ())))
        for tensor in tensors
    ]
    return table(["", _("tensor"), _("datatype"), _("shape")], rows)


def _shape(shape: Any) -> str:
    return " × ".join("n" if size == -1 else str(size) for size in shape)
