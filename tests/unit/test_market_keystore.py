"""The learner's own keys."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from kpaas_lab.errors import SettingsError
from kpaas_lab.market.keystore import KeyStore, StoredKey

KEY = "kpl_" + "k" * 43


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "home" / "keys.json")
    store.put("s", StoredKey("ann/digits", KEY))
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.path.parent.stat().st_mode & 0o777 == 0o700
    assert KEY not in repr(store.get("s"))
    store.remove("s")
    store.remove("s")
    assert store.get("s") is None


def put(path: Path, name: str) -> None:
    KeyStore(path).put(name, StoredKey(name, KEY))


def test_kernels_at_once_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    context = multiprocessing.get_context("fork")
    kernels = [context.Process(target=put, args=(path, f"s{n}")) for n in range(8)]
    for kernel in kernels:
        kernel.start()
    for kernel in kernels:
        kernel.join(30)
    assert sorted(json.loads(path.read_text())["keys"]) == [f"s{n}" for n in range(8)]
    assert list(tmp_path.glob(".keys-*")) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = KeyStore(tmp_path / "keys.json")
    store.put("s", StoredKey("ann/digits", KEY))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SettingsError, match="No space left"):
        store.put("t", StoredKey("ann/digits", KEY))
    assert store.get("s") == StoredKey("ann/digits", KEY)
    assert list(tmp_path.glob(".keys-*")) == []


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(SettingsError, match=r"keys\.json"):
        KeyStore(tmp_path / "home" / "keys.json").check_writable()


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(SettingsError, match="damaged"):
        KeyStore(tmp_path / "keys.json").get("s")
