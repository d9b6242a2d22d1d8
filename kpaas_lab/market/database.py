"""Opens the market's database, SQLite or PostgreSQL, and brings it to this version's tables."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from kpaas_lab.errors import EngineUnavailableError, LabError, SettingsError
from kpaas_lab.i18n import _

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT = 15.0  # seconds that a writer waits for another on SQLite
CONNECT_TIMEOUT = 10  # seconds, PostgreSQL
ADVISORY_LOCK = 0x6B70616173  # "kpaas": one migration at a time in a PostgreSQL database


def open_database(url: str, *, migrate: bool) -> Engine:
    """The database's engine, with its tables at this version.

    Args:
        url: `sqlite:///<absolute path>` or `postgresql://user:password@host/name`.
        migrate: bring an older database up to date (one process at a time does); without it, an older one is refused.

    Raises:
        SettingsError: a URL that can't be used, or a database from another version.
        EngineUnavailableError: it can't be reached or written to. No message holds the password.
    """
    address = _address(url)
    try:
        if address.get_backend_name() == "sqlite":
            return _open_sqlite(address, migrate=migrate)
        return _open_postgresql(address, migrate=migrate)
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:  # its own where a cursor is used without SQLAlchemy
        raise _unreachable(address, error) from None


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session that only reads: one consistent view, rolled back at its end."""
    with Session(engine) as session:
        yield session


@contextlib.contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """A session that is committed, durably, when the block ends without an error.

    On SQLite it holds the write lock from its first statement: what it has read can't change before it writes.
    """
    with Session(engine.execution_options(immediate=True), expire_on_commit=False) as session, session.begin():
        yield session


def _address(url: str) -> URL:
    """The URL as SQLAlchemy wants it."""
    try:
        address = make_url(url)
    except ArgumentError:
        raise _unusable(_("KPAAS_LAB_DATABASE_URL isn't a database's address.")) from None
    kind = address.drivername.partition("+")[0]
    if kind in {"postgres", "postgresql"}:
        return address.set(drivername="postgresql+psycopg")
    if kind != "sqlite":
        raise _unusable(_("No database of the kind '{kind}' can be used.").format(kind=kind))
    if not address.database or address.database == ":memory:":
        raise _unusable(_("A database in memory is lost when the market stops."))
    return address


def _unusable(message: str) -> SettingsError:
    return SettingsError(
        message, hint=_("Use sqlite:///<path of a file> or postgresql://<user>:<password>@<host>/<database>.")
    )


def _unreachable(address: URL, error: Exception) -> LabError:
    """What went wrong, without the password and without SQL."""
    cause = getattr(error, "orig", None) or error
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    if address.password:
        reason = reason.replace(str(address.password), "***")
    shown = address.render_as_string(hide_password=True)
    return EngineUnavailableError(
        _("The market's database {address} can't be used: {reason}").format(address=shown, reason=reason),
        hint=_("Check KPAAS_LAB_DATABASE_URL, that the database runs, and that this account may read and write it."),
    )


def _open_sqlite(address: URL, *, migrate: bool) -> Engine:
    path = Path(str(address.database)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # its -wal and -shm take the same mode
    engine = create_engine(
        address.set(database=str(path)), connect_args={"timeout": BUSY_TIMEOUT, "check_same_thread": False}
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    with FileLock(f"{path}.lock", timeout=60, mode=0o600):
        with engine.connect() as connection:
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.close()
        with engine.execution_options(immediate=True).begin() as connection:
            _upgrade(connection, migrate=migrate)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so, see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")  # a commit that was acknowledged survives a power cut
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _open_postgresql(address: URL, *, migrate: bool) -> Engine:
    engine = create_engine(address, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_TIMEOUT})
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        _upgrade(connection, migrate=migrate)
    return engine


def _upgrade(connection: Connection, *, migrate: bool) -> None:
    """To the newest revision, in the caller's transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    head = script.get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current == head:
        return
    if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
        raise SettingsError(
            _("The market's database is of a newer version: revision {current}; this one knows {head}.").format(
                current=current, head=head
            ),
            hint=_("Upgrade K-PaaS Lab, or point KPAAS_LAB_DATABASE_URL to another database."),
        )
    if not migrate:
        raise SettingsError(
            _("The market's database is of an older version: revision {current}; this one needs {head}.").format(
                current=current or _("none"), head=head
            ),
            hint=_("Start the market first: it brings its database up to date."),
        )
    command.upgrade(config, "head")
