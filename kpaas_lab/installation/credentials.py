"""The installation's secrets: made once, at random, readable by its owner only, never written again."""

from __future__ import annotations

import json
import secrets
import string
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from kpaas_lab import durable
from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _

# No letters that are taken for digits, and none that a reader could take for another.
READABLE = "abcdefghjkmnpqrstuvwxyz23456789"
ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """All of secrets.json. Printing it shows nothing.

    Attributes:
        user_password: what learners log in with, any name.
        admin_password: of `admin_user`; JupyterHub wants 32 characters or more.
        market_token, api_token: by which the hub knows its services.
        traefik_user, traefik_password: of the proxy's own API.
        crypt_key, cookie_secret: 32 random bytes each, in hexadecimal.
    """

    user_password: str
    admin_user: str
    admin_password: str
    market_token: str
    api_token: str
    traefik_user: str
    traefik_password: str
    crypt_key: str
    cookie_secret: str

    def __repr__(self) -> str:
        return "Credentials(...)"


def _pick(alphabet: str, count: int) -> str:
    return "".join(secrets.choice(alphabet) for _unused in range(count))


def generate() -> Credentials:
    """New random secrets.

    Example:
        >>> made = generate()
        >>> len(made.user_password), len(made.admin_password) >= 32
        (14, True)
    """
    return Credentials(
        user_password="-".join(_pick(READABLE, 4) for _unused in range(3)),
        admin_user="admin",
        admin_password=_pick(ALPHANUMERIC, 36),
        market_token=secrets.token_hex(32),
        api_token=secrets.token_hex(32),
        traefik_user="hub",
        traefik_password=secrets.token_hex(32),
        crypt_key=secrets.token_hex(32),
        cookie_secret=secrets.token_hex(32),
    )


def parse(text: str, path: Path) -> Credentials:
    """Secrets from the text of secrets.json.

    Raises:
        SettingsError: damaged; the message says where, and quotes nothing of it.
    """
    hint = _(
        "Put it back from a backup. To go on with new passwords, move it away and start again: everybody then has to "
        "log in anew."
    )
    try:
        raw = json.loads(text)
    except ValueError:
        raise SettingsError(_("{path} is damaged: it is not JSON.").format(path=path), hint=hint) from None
    names = [field.name for field in fields(Credentials)]
    values = raw if isinstance(raw, dict) else {}
    missing = [name for name in names if not isinstance(values.get(name), str) or not values[name]]
    if missing:
        raise SettingsError(
            _("{path} is damaged: {names} missing.").format(path=path, names=", ".join(missing)), hint=hint
        )
    return Credentials(**{name: values[name] for name in names})


def load(path: Path) -> Credentials:
    """Read secrets.json.

    Raises:
        SettingsError: absent, unreadable, damaged, or others may read it.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(
            _("There is no {path}.").format(path=path), hint=_("It is made at the first start: kpaas-lab up.")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or _("it is not text")
        raise SettingsError(
            _("{path} can't be read: {error}.").format(path=path, error=reason),
            hint=_("Only the user who started K-PaaS Lab can read it."),
        ) from None
    if mode & 0o077:
        raise SettingsError(
            _("Others than its owner may read {path}.").format(path=path),
            hint=_(
                "Make it private (chmod 600 {path}). Where others had access, move it away to get new passwords."
            ).format(path=path),
        )
    return parse(text, path)


def load_or_make(path: Path) -> tuple[Credentials, bool]:
    """The secrets, and whether they are new.

    Raises:
        SettingsError: damaged, or unreadable.
        OSError: new ones couldn't be written.
    """
    if path.exists():
        return load(path), False
    made = generate()
    durable.write(path, json.dumps(asdict(made), indent=2) + "\n")
    return made, True
