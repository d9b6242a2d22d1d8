"""Tables for a terminal: pure text."""

from __future__ import annotations

from collections.abc import Iterator

from kpaas_lab.i18n import _
from kpaas_lab.installation.doctor import Finding, Verdict
from kpaas_lab.installation.status import Overview
from kpaas_lab.texttable import plain_table

MARKS = {Verdict.OK: "✓", Verdict.LIMITED: "·", Verdict.MISSING: "✗"}


def duration(seconds: float) -> str:
    """A span of time in its two largest units.

    Example:
        >>> duration(59.7), duration(3700), duration(90000)
        ('59s', '1h 1m', '1d 1h')
    """
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    first = next((index for index, (count, _unit) in enumerate(parts) if count), 3)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2])


def size(count: float) -> str:
    """Bytes in a unit that fits.

    Example:
        >>> size(512), size(3 * 2**30)
        ('512 B', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def finding_lines(finding: Finding) -> Iterator[str]:
    """One check, and its fix below.

    Example:
        >>> list(finding_lines(Finding(name="gpu", verdict=Verdict.LIMITED, found="No GPU.", fix="Buy one.")))
        ['· No GPU.', '    Buy one.']
    """
    yield f"{MARKS[finding.verdict]} {finding.found}"
    if finding.fix:
        yield f"    {finding.fix}"


def overview_lines(seen: Overview) -> Iterator[str]:
    """What runs now."""
    if not seen.running:
        yield _("K-PaaS Lab does not run on {home}. Start it: kpaas-lab up --home {home}").format(home=seen.home)
        yield _("Disk: {used} used, {free} free").format(used=size(seen.disk_used), free=size(seen.disk_free))
        return
    yield _("K-PaaS Lab runs at {address} on {home}").format(address=seen.address, home=seen.home)
    header = [_("process"), _("state"), "pid", _("uptime"), _("restarts")]
    rows = [[one.name, one.state.lower(), one.pid or "-", duration(one.uptime), one.restarts] for one in seen.processes]
    yield from plain_table(header, rows).splitlines()
    if not seen.processes:
        yield _("(supervisor does not answer: it is starting or stopping)")
    yield _("Learners in: {names}").format(names=", ".join(seen.learners) or _("nobody"))
    yield _("Disk: {used} used, {free} free").format(used=size(seen.disk_used), free=size(seen.disk_free))
