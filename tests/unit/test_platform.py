"""The state folder, its secrets and ports, and what each process is told."""

import dataclasses
import errno
import json
import os
import stat
from pathlib import Path

import pytest

from kpaas_lab import durable
from kpaas_lab.errors import SettingsError
from kpaas_lab.installation import credentials, layout, ports, programs, proxy, supervisor, up
from kpaas_lab.installation.layout import FOLDERS, Layout, open_home

PORTS = {"public": 8123, "hub": 20001, "market": 20002, "api": 20003, "traefik_api": 20004}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# The state folder


def test_a_new_home_is_its_owners_alone(tmp_path: Path) -> None:
    made = open_home(tmp_path / "state" / "lab")
    assert mode(made.home) == 0o700
    assert all(mode(made.home / folder) == 0o700 for folder in FOLDERS)
    assert open_home(made.home) == made  # and can be opened again


@pytest.mark.parametrize("name", ["with space", "한국어", "50% ;#'\"$HOME", "x" * 150])
def test_odd_names_are_fine(tmp_path: Path, name: str) -> None:
    assert open_home(tmp_path / name).home.name == name


def test_control_characters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="control characters"):
        open_home(tmp_path / "a\nb")


def test_a_file_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "lab").write_text("")
    with pytest.raises(SettingsError, match="is not a folder"):
        open_home(tmp_path / "lab")


def test_somebody_elses_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SettingsError, match=r"thesis\.tex"):
        open_home(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_home_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 4242)
    with pytest.raises(SettingsError, match="belongs to"):
        open_home(tmp_path)


def test_a_nearly_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "NEEDED_FREE_MIB", 10**9)
    with pytest.raises(SettingsError, match="is full"):
        open_home(tmp_path)


def test_a_home_that_was_never_made(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no K-PaaS Lab"):
        layout.existing_home(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    durable.write(path, "old")

    def no_space(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        durable.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# Secrets


def test_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    made, new = credentials.load_or_make(path)
    before = path.read_bytes()
    again, newer = credentials.load_or_make(path)
    assert (new, newer) == (True, False)
    assert again == made
    assert path.read_bytes() == before
    assert mode(path) == 0o600


def test_secrets_fit_jupyterhub() -> None:
    from jupyterhub.authenticators.shared import SharedPasswordAuthenticator

    made = credentials.generate()
    authenticator = SharedPasswordAuthenticator(
        user_password=made.user_password, admin_password=made.admin_password, admin_users={made.admin_user}
    )
    assert authenticator.admin_password == made.admin_password
    assert len(bytes.fromhex(made.crypt_key)) == len(bytes.fromhex(made.cookie_secret)) == 32


def test_secrets_are_random_and_never_shown() -> None:
    one, other = credentials.generate(), credentials.generate()
    values = [set(json.loads(json.dumps(vars_of(made))).values()) - {"admin", "hub"} for made in (one, other)]
    assert len(values[0]) == 7
    assert not values[0] & values[1]
    assert one.admin_password not in repr(one)


def vars_of(made: credentials.Credentials) -> dict[str, str]:
    return {name: getattr(made, name) for name in made.__slots__}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ('{"user_password": "hunter2', "not JSON"),
        ("[]", "missing"),
        ('{"user_password": 3}', "missing"),
    ],
)
def test_damaged_secrets_are_never_replaced_nor_quoted(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match=reason) as caught:
        credentials.load_or_make(path)
    assert "backup" in caught.value.hint
    assert "hunter2" not in str(caught.value)
    assert path.read_text() == text


def test_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    credentials.load_or_make(path)
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="Others"):
        credentials.load(path)


# Ports


def test_ports_are_kept_while_free() -> None:
    kept = {name: PORTS[name] for name in ports.INTERNAL}
    assert ports.choose(kept, 8123, lambda _port: True) == PORTS
    changed = ports.choose(kept, 8123, lambda port: port != 20003)
    assert changed["api"] != 20003
    assert {**changed, "api": 20003} == PORTS


def test_an_internal_port_never_is_the_public_one() -> None:
    chosen = ports.choose({"hub": 8123}, 8123, lambda _port: True)
    assert len(set(chosen.values())) == len(chosen)


@pytest.mark.parametrize("text", ["", "[1]", '{"hub": "x"}', '{"hub": 0}', '{"hub": 99999}', '{"hub": true}', "{"])
def test_a_damaged_list_of_ports_is_only_forgotten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ports.json"
    path.write_text(text)
    assert ports.load(path) == {}


def test_a_taken_port_names_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "bind_error", lambda _address, port: errno.EADDRINUSE if port < 8125 else 0)
    with pytest.raises(SettingsError, match="8123") as caught:
        ports.check_public("127.0.0.1", 8123)
    assert "8125" in caught.value.hint


@pytest.mark.parametrize(("code", "words"), [(errno.EACCES, "administrator"), (errno.EADDRNOTAVAIL, "no address")])
def test_a_port_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    monkeypatch.setattr(ports, "bind_error", lambda _address, _port: code)
    with pytest.raises(SettingsError, match=words):
        ports.check_public("192.0.2.1", 80)


def test_any_port_of_an_address_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "bind_error", lambda _address, _port: errno.EADDRNOTAVAIL)
    with pytest.raises(SettingsError, match="no address"):
        ports.check_public("192.0.2.1", 0)


# What each process is told


def environments() -> dict[str, dict[str, str]]:
    place = Layout(Path("/srv/lab"))
    environ = {
        "PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "0", "AWS_SECRET_ACCESS_KEY": "aws",
        "PYTHONPATH": "/evil", "JUPYTER_CONFIG_DIR": "/evil", "VIRTUAL_ENV": "/evil", "KPAAS_LAB_IDLE_SECONDS": "60",
    }  # fmt: skip
    base = programs.base_environment(
        environ, place, PORTS, public_url="http://127.0.0.1:8123", database_url="postgresql+psycopg://u:dbpass@h/d",
        slices=Path("/s.yaml"), lang="ko",
    )  # fmt: skip
    return {name: programs.environment(name, base, place, SECRETS) for name in programs.NAMES}


SECRETS = credentials.generate()


def test_a_persons_environment_does_not_steer_the_platform() -> None:
    for env in environments().values():
        assert not {"AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "JUPYTER_CONFIG_DIR", "VIRTUAL_ENV"} & set(env)
        assert env["CUDA_VISIBLE_DEVICES"] == "0"
        assert env["KPAAS_LAB_IDLE_SECONDS"] == "60"
        assert env["HOME"].startswith("/srv/lab/")


def test_each_process_gets_the_secrets_that_it_needs_and_no_other() -> None:
    told = {name: "\n".join(env.values()) for name, env in environments().items()}
    assert [name for name in told if SECRETS.market_token in told[name]] == ["market"]
    assert [name for name in told if SECRETS.api_token in told[name]] == ["api"]
    assert [name for name in told if "dbpass" in told[name]] == ["market", "api"]
    for text in told.values():
        assert not [
            secret
            for secret in (SECRETS.admin_password, SECRETS.user_password, SECRETS.cookie_secret)
            if secret in text
        ]


def test_services_find_the_hub() -> None:
    env = environments()["market"]
    assert env["JUPYTERHUB_API_URL"] == "http://127.0.0.1:20001/hub/api"
    assert env["JUPYTERHUB_SERVICE_PREFIX"] == "/services/market/"
    assert env["KPAAS_LAB_LISTEN"] == "127.0.0.1:20002"
    assert json.loads(env["KPAAS_LAB_PORTS"]) == PORTS


def test_no_secret_in_supervisors_or_the_proxys_configuration() -> None:
    text = supervisor.configuration() + proxy.as_yaml(proxy.static_config("0.0.0.0", PORTS, Path("/r.toml")))
    assert not [value for value in vars_of(SECRETS).values() if len(value) > 8 and value in text]


def test_supervisor_reads_its_configuration() -> None:
    import configparser

    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(supervisor.configuration())
    assert parser["program:hub"]["autorestart"] == "true"
    assert parser["program:hub"]["killasgroup"] == "true"
    assert parser["program:hub"]["stdout_logfile_backups"] == "5"


# The public address


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "lab.example.org", "https://", "https://x/path", "https://u@x", "https://x:99999", "http://x?q=1"],
)
def test_what_cannot_be_a_public_address(url: str) -> None:
    with pytest.raises(SettingsError, match="public address"):
        up.check_public_url(url)


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8123"),
        ("0.0.0.0", "http://127.0.0.1:8123"),
        ("::1", "http://[::1]:8123"),
        ("192.0.2.7", "http://192.0.2.7:8123"),
    ],
)
def test_the_address_people_open(bind: str, address: str) -> None:
    options = up.Options(
        home=Path("/h"), port=8123, bind=bind, public_url="", database_url="", slices=Path("/s"), lang="en"
    )
    assert up.address(options, 8123) == address


def test_what_the_operator_chose_reaches_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KPAAS_LAB_OVERCOMMIT", "3")
    options = up.Options(
        home=Path("/h"), port=8123, bind="::1", public_url="", database_url="", slices=Path("/s"), lang="en"
    )
    assert options.environ["KPAAS_LAB_OVERCOMMIT"] == "3"
    assert dataclasses.replace(options, overcommit=1.5).environ["KPAAS_LAB_OVERCOMMIT"] == "1.5"
