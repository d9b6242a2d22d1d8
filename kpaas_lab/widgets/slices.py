"""Slices as tables: what there is, and what this notebook's slice promised and really has."""

from __future__ import annotations

from collections.abc import Sequence

from kpaas_lab.i18n import _
from kpaas_lab.observation import Comparison, SliceCheck, SliceTable, Verdict
from kpaas_lab.widgets.markup import Html, card, pill, row, soft, table, tag

_TONES = {Verdict.AS_PROMISED: "good", Verdict.LESS: "bad", Verdict.UNLIMITED: "warn", Verdict.WATCHED: "good"}


def slices_html(slices: SliceTable) -> Html:
    """Every slice with what is free of it."""
    return card(
        tag("h4", _("Slices of this installation")),
        table(slices.header(), slices.rows()),
        tag("p", soft(_("Choose one: lab.train(..., slice='name').  Without a slice it is the first CPU slice."))),
    )


def check_html(check: SliceCheck) -> Html:
    """Promised against observed."""
    rows = [
        [*cells[:3], pill(cells[3], _TONES[comparison.verdict])]
        for cells, comparison in zip(check.rows(), check.comparisons, strict=True)
    ]
    return card(
        row(tag("h4", check.profile.name), soft(check.profile.title), *map(soft, check.observed.gpus)),
        table(check.header(), rows),
        _explanation(check.comparisons),
    )


def _explanation(comparisons: Sequence[Comparison]) -> Html | None:
    seen = {comparison.verdict for comparison in comparisons}
    words = []
    if Verdict.LESS in seen:
        words.append(_("Less than promised: this machine, or a limit around this notebook, has no more."))
    if Verdict.UNLIMITED in seen:
        words.append(_("Not limited: nothing holds this process to the slice; others may feel it."))
    if Verdict.WATCHED in seen:
        words.append(_("Kept by the sandbox: it ends the largest process when all together use more than promised."))
    return tag("p", soft(" ".join(words))) if words else None
