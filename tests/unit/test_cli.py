"""The command line: help for everything, both languages, errors in two lines."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kpaas_lab.cli import _take_language
from kpaas_lab.cli.commands import app
from kpaas_lab.installation import credentials
from kpaas_lab.installation.layout import open_home

COMMANDS = ("up", "down", "status", "doctor", "passwords")
run = CliRunner().invoke


def test_every_command_and_every_option_has_help() -> None:
    group = typer.main.get_command(app)
    assert set(group.commands) == set(COMMANDS)
    for command in group.commands.values():
        assert command.help
        assert not [option.name for option in command.params if not getattr(option, "help", None)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_shown(command: str) -> None:
    answer = run(app, [command, "--help"])
    assert answer.exit_code == 0
    assert "--home" in answer.output


def test_without_a_command_there_is_help() -> None:
    assert "doctor" in run(app, []).output


def test_version() -> None:
    from kpaas_lab import __version__

    assert run(app, ["--version"]).output.strip() == __version__


@pytest.mark.parametrize("command", ["down", "status", "passwords"])
def test_no_home_says_what_to_do(command: str, tmp_path: Path) -> None:
    answer = run(app, [command, "--home", str(tmp_path)])
    assert answer.exit_code == 1
    assert "no K-PaaS Lab" in answer.output
    assert "kpaas-lab up" in answer.output
    assert "Traceback" not in answer.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lang", "fr"], "no language"),
        (["--public-url", "nonsense"], "public address"),
        (["--slices", "/nowhere.yaml"], "can't be read"),
    ],
)
def test_options_that_cannot_be(arguments: list[str], words: str, tmp_path: Path) -> None:
    answer = run(app, ["up", "--home", str(tmp_path / "lab"), *arguments])
    assert answer.exit_code == 1
    assert words in answer.output
    assert not (tmp_path / "lab").exists()


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none(port: str, tmp_path: Path) -> None:
    assert run(app, ["up", "--home", str(tmp_path / "lab"), "--port", port]).exit_code == 2


@pytest.mark.parametrize("times", ["0", "-1", "much"])
def test_an_overcommit_that_is_none(times: str, tmp_path: Path) -> None:
    answer = run(app, ["up", "--home", str(tmp_path / "lab"), "--overcommit", times])
    assert answer.exit_code == 2
    assert "--overcommit" in answer.output


def test_status_of_a_stopped_platform(tmp_path: Path) -> None:
    open_home(tmp_path / "lab")
    answer = run(app, ["status", "--home", str(tmp_path / "lab"), "--json"])
    assert answer.exit_code == 3
    seen = json.loads(answer.output)
    assert (seen["running"], seen["processes"], seen["learners"]) == (False, [], [])
    assert seen["disk_free"] > 0


def test_passwords_are_shown_to_their_owner(tmp_path: Path) -> None:
    place = open_home(tmp_path / "lab")
    made, _new = credentials.load_or_make(place.secrets)
    answer = run(app, ["passwords", "--home", str(place.home), "--json"])
    assert json.loads(answer.output) == {
        "user_password": made.user_password, "admin_user": "admin", "admin_password": made.admin_password,
    }  # fmt: skip
    place.secrets.chmod(0o640)
    answer = run(app, ["passwords", "--home", str(place.home)])
    assert answer.exit_code == 1
    assert made.admin_password not in answer.output


@pytest.mark.parametrize("arguments", [["status", "--lang", "ko"], ["--x", "--lang=ko"]])
def test_the_language_is_known_before_the_help_is(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KPAAS_LAB_LANG", "en")
    _take_language(arguments)
    import os

    assert os.environ["KPAAS_LAB_LANG"] == "ko"
