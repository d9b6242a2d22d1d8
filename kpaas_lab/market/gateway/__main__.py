"""`python -m kpaas_lab.market.gateway`."""

from kpaas_lab.market.gateway.app import main

if __name__ == "__main__":
    raise SystemExit(main())
