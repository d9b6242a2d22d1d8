"""`python -m kpaas_lab.cli`."""

from kpaas_lab.cli import main

if __name__ == "__main__":
    main()
