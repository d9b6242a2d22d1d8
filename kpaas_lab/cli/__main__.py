"""`python -m kpaas_lab.cli`."""

from kpaas_lab.cli import main

main()
