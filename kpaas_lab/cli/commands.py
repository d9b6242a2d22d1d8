"""The sub-commands of `kpaas-lab`: options in, lines out. What they do stands in `kpaas_lab.installation`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kpaas_lab import __version__
from kpaas_lab.errors import LabError, SettingsError
from kpaas_lab.i18n import LANGUAGES, _, language
from kpaas_lab.installation import layout as places

app = typer.Typer(
    name="kpaas-lab",
    help=_("K-PaaS Lab on one machine: learn, train, serve and sell AI in a browser notebook."),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Home = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="KPAAS_LAB_HOME",
        help=_("The state folder: everything that K-PaaS Lab keeps is in it."),
        default_factory=places.default_home,
        show_default="~/.local/share/kpaas-lab",
        file_okay=False,
    ),
]
Lang = Annotated[
    str, typer.Option("--lang", help=_("Language: en or ko."), envvar="KPAAS_LAB_LANG", show_default=_("the system's"))
]
Json = Annotated[bool, typer.Option("--json", help=_("Print JSON, for a script."))]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help=_("The port people open; 0 chooses a free one."))]
Bind = Annotated[
    str,
    typer.Option(
        "--bind", help=_("The address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for the network.")
    ),
]


def _fail(error: LabError) -> typer.Exit:
    typer.echo(f"kpaas-lab: {error.message}", err=True)
    if error.hint:
        typer.echo(error.hint.strip("\n"), err=True)
    return typer.Exit(1)


@contextmanager
def plainly() -> Iterator[None]:
    """Errors as two lines that say what and what next, never as a traceback."""
    try:
        yield
    except LabError as error:
        raise _fail(error) from None
    except BrokenPipeError:  # `| head`: nobody reads on
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise _fail(
            LabError(f"{where}{error.strerror or error}", hint=_("Check the state folder: kpaas-lab doctor"))
        ) from None


def _check_language(chosen: str) -> str:
    if chosen and chosen not in LANGUAGES:
        raise SettingsError(
            _("There is no language {name!r}.").format(name=chosen[:40]),
            hint=_("Languages: {names}.").format(names=", ".join(LANGUAGES)),
        )
    return chosen or language()


def _say(line: str) -> None:
    typer.echo(line)
    sys.stdout.flush()  # a log or a pipe sees each step as it happens


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help=_("Print the version."))
    ] = False,
) -> None:
    """What stands before a sub-command."""


@app.command(help=_("Start everything on this machine, print the address, and stay until Ctrl-C."))
def up(
    home: Home,
    port: Port = 8123,
    bind: Bind = "127.0.0.1",
    public_url: Annotated[
        str,
        typer.Option(
            "--public-url",
            help=_("The address people open, where a reverse proxy stands before this one: https://lab.example.org"),
        ),
    ] = "",
    database_url: Annotated[
        str,
        typer.Option(
            "--database-url",
            envvar="KPAAS_LAB_DATABASE_URL",
            show_envvar=True,
            help=_(
                "The market's database as a SQLAlchemy URL, for example postgresql+psycopg://user:password@host/name."
            ),
            show_default=_("SQLite in the state folder"),
        ),
    ] = "",
    slices: Annotated[
        Path | None,
        typer.Option(
            "--slices",
            envvar="KPAAS_LAB_SLICES",
            help=_("The catalogue of slices that learners choose from, in YAML."),
            show_default=_("the one that comes with K-PaaS Lab"),
        ),
    ] = None,
    overcommit: Annotated[
        float | None,
        typer.Option(
            "--overcommit",
            envvar="KPAAS_LAB_OVERCOMMIT",
            min=0.1,
            help=_(
                "How many times the machine's memory the slices of all learners may promise together. Nobody gets more "
                "than their slice; with 1, all of it is there even when everybody uses theirs up at once."
            ),
            show_default="2",
        ),
    ] = None,
    lang: Lang = "",
) -> None:
    """See `kpaas_lab.installation.up`."""
    from kpaas_lab.cli.opened import show
    from kpaas_lab.installation import up as starting

    with plainly():
        options = starting.Options(
            home=home, port=port, bind=bind, public_url=starting.check_public_url(public_url),
            database_url=database_url, slices=(slices or places.slices_file()).absolute(), lang=_check_language(lang),
            overcommit=overcommit,
        )  # fmt: skip
        starting.run(options, _say, partial(show, bind))


@app.command(help=_("Stop everything, the learners' servers too."))
def down(home: Home, lang: Lang = "") -> None:
    """See `kpaas_lab.installation.down`."""
    from kpaas_lab.installation import down as stopping

    with plainly():
        _check_language(lang)
        ran = stopping.run(places.existing_home(home), _say)
        _say(_("Everything is stopped.") if ran else _("Nothing was running."))


@app.command(help=_("Show what runs: processes, address, learners, disk. Exit code 0 if it runs, 3 if not."))
def status(home: Home, as_json: Json = False, lang: Lang = "") -> None:
    """See `kpaas_lab.installation.status`."""
    from kpaas_lab.cli.tables import overview_lines
    from kpaas_lab.installation.status import overview

    with plainly():
        _check_language(lang)
        seen = overview(places.existing_home(home))
    if as_json:
        _say(json.dumps(seen.as_json(), ensure_ascii=False, indent=2))
    else:
        for line in overview_lines(seen):
            _say(line)
    raise typer.Exit(0 if seen.running else 3)


@app.command(
    help=_("Say what this machine can and can't do, with the fix for each. Exit code 1 if something needed is missing.")
)
def doctor(home: Home, port: Port = 8123, bind: Bind = "127.0.0.1", as_json: Json = False, lang: Lang = "") -> None:
    """See `kpaas_lab.installation.doctor`."""
    from kpaas_lab.cli.tables import finding_lines
    from kpaas_lab.installation.doctor import Verdict, findings

    with plainly():
        _check_language(lang)
        found = []
        for finding in findings(Path(home).expanduser().absolute(), bind, port):
            found.append(finding)
            if not as_json:
                for line in finding_lines(finding):
                    _say(line)
    bad = [finding.name for finding in found if finding.verdict is Verdict.MISSING]
    if as_json:
        from dataclasses import asdict

        _say(json.dumps({"ok": not bad, "findings": [asdict(one) for one in found]}, ensure_ascii=False, indent=2))
    else:
        _say(_("Needed and missing: {names}").format(names=", ".join(bad)) if bad else _("Nothing needed is missing."))
    raise typer.Exit(1 if bad else 0)


@app.command(help=_("Show the log-ins again. Only the user who started K-PaaS Lab can."))
def passwords(home: Home, as_json: Json = False, lang: Lang = "") -> None:
    """See `kpaas_lab.installation.credentials`."""
    from kpaas_lab.cli.opened import login_lines
    from kpaas_lab.installation import credentials

    with plainly():
        _check_language(lang)
        secrets = credentials.load(places.existing_home(home).secrets)
    if as_json:
        names = ("user_password", "admin_user", "admin_password")
        _say(json.dumps({name: getattr(secrets, name) for name in names}))
    else:
        for line in login_lines(secrets):
            _say(line)
