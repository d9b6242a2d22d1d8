"""The learner's own keys: one file that only they can read. A key is shown once, so losing this file loses keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from kpaas_lab import durable
from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key and what it calls; its text is in no repr."""

    listing: str
    text: str

    def __repr__(self) -> str:
        return f"StoredKey(listing={self.listing!r}, text='{self.text[:12]}…')"


class KeyStore:
    """`keys.json`, by subscription id. Every change is atomic, and safe between kernels.

    Args:
        path: of the file; made with mode 0600 at the first key.

    Example:
        >>> import tempfile
        >>> store = KeyStore(Path(tempfile.mkdtemp()) / "keys.json")
        >>> store.put("s1", StoredKey("ann/digits", "kpl_" + "a" * 43))
        >>> store.get("s1")
        StoredKey(listing='ann/digits', text='kpl_aaaaaaaa…')
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, subscription: str) -> StoredKey | None:
        """The key of a subscription, if it is here."""
        return self._read().get(subscription)

    def put(self, subscription: str, key: StoredKey) -> None:
        """Keep a key; it is on the disk when this returns."""
        with self._locked():
            self._write({**self._read(), subscription: key})

    def remove(self, subscription: str) -> None:
        """Forget a key. Idempotent."""
        with self._locked():
            kept = self._read()
            if kept.pop(subscription, None) is not None:
                self._write(kept)

    def check_writable(self) -> None:
        """Find out before a key is made, which could be shown only once.

        Raises:
            SettingsError: says what is wrong with the folder or the file.
        """
        with self._locked():
            self._write(self._read())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(f"{self.path}.lock", timeout=20, mode=0o600):
                yield
        except OSError as error:
            raise SettingsError(
                _("Your keys can't be kept in {path}: {reason}.").format(
                    path=self.path, reason=error.strerror or error
                ),
                hint=_("Make room, or make the folder writable, then try again."),
            ) from error

    def _read(self) -> dict[str, StoredKey]:
        try:
            raw = json.loads(self.path.read_text())
            return {str(id): StoredKey(str(key["listing"]), str(key["key"])) for id, key in raw["keys"].items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(
                _("{path} is damaged.").format(path=self.path),
                hint=_("Move it away; then subscribe again, which makes new keys."),
            ) from error

    def _write(self, keys: Mapping[str, StoredKey]) -> None:
        content = {"keys": {id: {"listing": key.listing, "key": key.text} for id, key in keys.items()}}
        durable.write(self.path, json.dumps(content, indent=1))
