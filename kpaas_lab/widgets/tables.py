"""Many handles at once: one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kpaas_lab.i18n import _
from kpaas_lab.widgets.endpoint import replicas, since
from kpaas_lab.widgets.markup import Html, card, soft, table, tag
from kpaas_lab.widgets.phases import duration, phase_pill
from kpaas_lab.widgets.run import RunHandle, take

if TYPE_CHECKING:
    from kpaas_lab.serving import Endpoint


def runs_html(runs: Mapping[str, RunHandle]) -> Html:
    """All runs, the newest first."""
    if not runs:
        return _empty(_("No runs yet."), _("Start one: run = lab.train(fit, data='kpaas/digits')"))
    header = [_("run"), _("phase"), _("step"), _("last values"), _("took"), _("slice")]
    return card(tag("h4", _("Runs")), table(header, [_run_row(run) for run in reversed(list(runs.values()))]))


def _run_row(run: RunHandle) -> list[object]:
    picture = take(run)
    values = [f"{name} {points[-1][1]:.4g}" for name, points in list(picture.curves.items())[:3] if points]
    return [
        run.name,
        phase_pill(picture.status.phase),
        "{:g} / {:g}".format(*picture.progress) if picture.progress else "",
        "  ".join(values),
        duration(picture.seconds) if picture.status.started else "",
        picture.status.slice or "",
    ]


def endpoints_html(endpoints: Mapping[str, Endpoint]) -> Html:
    """All endpoints, oldest first."""
    if not endpoints:
        return _empty(_("No endpoints yet."), _("Start one: endpoint = lab.serve(run.model, name='digits')"))
    rows = [
        [name, phase_pill(status.phase), replicas(status), status.slice or "", since(status)]
        for name, endpoint in endpoints.items()
        for status in [endpoint.status]
    ]
    return card(tag("h4", _("Endpoints")), table([_("endpoint"), _("phase"), _("ready"), _("slice"), _("since")], rows))


def _empty(what: str, hint: str) -> Html:
    return card(tag("p", what), tag("p", soft(hint)))
