"""The command `kpaas-lab`."""

from __future__ import annotations

import os
import sys


def _take_language(arguments: list[str]) -> None:
    """`--lang` decides the help texts too, so it is read before the commands are."""
    for position, argument in enumerate(arguments):
        value = argument.partition("=")[2] if argument.startswith("--lang=") else ""
        if argument == "--lang" and position + 1 < len(arguments):
            value = arguments[position + 1]
        if value:
            os.environ["KPAAS_LAB_LANG"] = value


def main() -> None:
    """Entry point of the console script."""
    _take_language(sys.argv[1:])
    from kpaas_lab.cli.commands import app

    app()
