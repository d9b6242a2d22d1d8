"""The state folder: where each thing is kept, and whether a folder can be one."""

from __future__ import annotations

import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _

NEEDED_FREE_MIB = 200  # to start at all: databases, logs, one learner's first files
FOLDERS = ("run", "run/sandboxes", "run/starts", "log", "proxy", "hub", "market", "api/spool", "learners")
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one state folder (ARCHITECTURE.md, "The state folder").

    Example:
        >>> Layout(Path("/srv/lab")).secrets
        PosixPath('/srv/lab/secrets.json')
        >>> Layout(Path("/srv/lab")).log("hub")
        PosixPath('/srv/lab/log/hub.log')
    """

    home: Path

    @property
    def run(self) -> Path:
        """What belongs to the running platform: lock, sockets, ports."""
        return self.home / "run"

    @property
    def secrets(self) -> Path:
        """Passwords, service tokens, cookie and proxy secrets."""
        return self.home / "secrets.json"

    @property
    def ports(self) -> Path:
        """The ports chosen, kept from one start to the next."""
        return self.run / "ports.json"

    @property
    def lock(self) -> Path:
        """Held as long as the platform runs."""
        return self.run / "lock"

    @property
    def running(self) -> Path:
        """Who holds the lock, and the address."""
        return self.run / "up.json"

    @property
    def sandboxes(self) -> Path:
        """One record for each learner's server."""
        return self.run / "sandboxes"

    @property
    def supervisor_socket(self) -> Path:
        """Where supervisor takes questions."""
        return self.run / "supervisor.sock"

    @property
    def supervisor_config(self) -> Path:
        """Written at each start."""
        return self.run / "supervisord.conf"

    @property
    def proxy_config(self) -> Path:
        """Traefik's static configuration."""
        return self.home / "proxy" / "traefik.yaml"

    @property
    def proxy_routes(self) -> Path:
        """Traefik's dynamic configuration; the hub writes it."""
        return self.home / "proxy" / "dynamic.toml"

    def log(self, process: str) -> Path:
        """The log of one process."""
        return self.home / "log" / f"{process}.log"

    def starts(self, process: str) -> Path:
        """One line for each time the process was started since `up`."""
        return self.run / "starts" / process


def default_home() -> Path:
    """Where state is kept unless told otherwise."""
    return Path.home() / ".local" / "share" / "kpaas-lab"


def slices_file() -> Path:
    """The catalogue of slices that comes with the platform."""
    return PACKAGE.parent / "hub_config" / "slices.yaml"


def _check_path(home: Path) -> None:
    if not str(home).isprintable():
        raise SettingsError(
            _("The path of the state folder has control characters in it."), hint=_("Choose another with --home.")
        )


def _check_folder(home: Path) -> None:
    if not home.is_dir():
        raise SettingsError(_("{home} is not a folder.").format(home=home), hint=_("Choose another with --home."))
    owner = home.stat().st_uid
    if owner != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise SettingsError(
            _("{home} belongs to {owner}.").format(home=home, owner=name),
            hint=_("Start as {owner}, or choose another folder with --home.").format(owner=name),
        )
    strangers = {entry.name for entry in os.scandir(home)} - {"lost+found"}
    if strangers and not {"secrets.json", "run"} & strangers:
        raise SettingsError(
            _("{home} has files of something else, for example {name}.").format(home=home, name=min(strangers)),
            hint=_("Choose an empty folder with --home, or one that K-PaaS Lab has made."),
        )


def open_home(home: Path) -> Layout:
    """Make the state folder, or check the one that is there.

    Raises:
        SettingsError: it can't be the state folder; the message says why and what to do.
    """
    home = Path(os.path.abspath(home.expanduser()))
    _check_path(home)
    layout = Layout(home)
    try:
        if not home.exists():
            home.mkdir(mode=0o700, parents=True)
        _check_folder(home)
        free = shutil.disk_usage(home).free // 2**20
        if free < NEEDED_FREE_MIB:
            raise SettingsError(
                _("The disk of {home} is full: {free} MiB are free.").format(home=home, free=free),
                hint=_("Free {needed} MiB, or choose a folder on another disk with --home.").format(
                    needed=NEEDED_FREE_MIB
                ),
            )
        for folder in FOLDERS:
            for part in (*reversed((home / folder).relative_to(home).parents[:-1]), Path(folder)):
                (home / part).mkdir(mode=0o700, exist_ok=True)
        probe = layout.run / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            _("The state folder {home} can't be written: {error}.").format(home=home, error=error.strerror or error),
            hint=_("Choose a folder that you may write to with --home."),
        ) from error
    return layout


def existing_home(home: Path) -> Layout:
    """The state folder of a platform that was started before.

    Raises:
        SettingsError: there is none.
    """
    layout = Layout(Path(os.path.abspath(home.expanduser())))
    if not layout.run.is_dir():
        raise SettingsError(
            _("There is no K-PaaS Lab in {home}.").format(home=layout.home),
            hint=_("Name its folder with --home, or make one: kpaas-lab up."),
        )
    return layout
