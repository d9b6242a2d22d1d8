"""What a person reads once everything answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kpaas_lab.i18n import _
from kpaas_lab.installation.credentials import Credentials
from kpaas_lab.installation.layout import Layout

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def login_lines(secrets: Credentials) -> Iterator[str]:
    """The two log-ins."""
    yield _("Learners log in with a name of their choice and the password {password}").format(
        password=secrets.user_password
    )
    yield _("The administrator logs in as {name} with the password {password}").format(
        name=secrets.admin_user, password=secrets.admin_password
    )


def show(bind: str, say: Callable[[str], None], address: str, layout: Layout, secrets: Credentials, new: bool) -> None:
    """The address on a line of its own; the log-ins at the first start only."""
    say("")
    say(address)
    say("")
    if new:
        for line in login_lines(secrets):
            say(line)
        say(_("They are shown once, and kept in {path}, which only you can read.").format(path=layout.secrets))
    else:
        say(_("The log-ins are in {path}.").format(path=layout.secrets))
    if bind not in LOOPBACK:
        say(
            _(
                "Others in the network reach it at port {port}, unencrypted: put a reverse proxy with TLS before it."
            ).format(port=address.rpartition(":")[2])
        )
    say(_("Ctrl-C stops everything."))
