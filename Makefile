# The two commands: `make run` and `make test`. Everything else is for developers (`make help`).
PYTHON ?= python3
TORCH ?= default
PORT ?= 8123
KPAAS_LAB_HOME ?= $(HOME)/.local/share/kpaas-lab

BIN := .venv/bin
PO := $(wildcard kpaas_lab/locale/*/LC_MESSAGES/kpaas_lab.po)
MO := $(PO:.po=.mo)

.PHONY: help run test pytest bench check env lock messages messages-update clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

run: env ## start everything on this machine and print the address
	@exec $(BIN)/kpaas-lab up --home "$(KPAAS_LAB_HOME)" --port $(PORT)

test: env check pytest ## every test that can run here; lists what was skipped and why

pytest:
	@$(BIN)/python -m pytest tests/unit tests/contract tests/integration tests/e2e

bench: env ## measure, side by side with the peers, and print one table
	@$(BIN)/python -m tests.bench

check: env ## lint and types
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

env: ## build the environment (shared by every clone with the same lock)
	@$(PYTHON) kpaas_lab/bootstrap.py --torch $(TORCH)
	@$(MAKE) --no-print-directory -s messages

messages: $(MO) ## compile the translations

messages-update: ## gather the texts of code and pages; what has no Korean yet is an empty msgstr
	@mkdir -p .build
	@$(BIN)/python -m babel.messages.frontend -q extract -F kpaas_lab/locale/babel.cfg --no-wrap \
	  --add-location=file --sort-by-file -o .build/kpaas_lab.pot .
	@$(foreach po,$(PO),$(BIN)/python -m babel.messages.frontend -q update -i .build/kpaas_lab.pot -o $(po) -N --no-wrap \
	  --ignore-obsolete --ignore-pot-creation-date -l $(notdir $(patsubst %/LC_MESSAGES/,%,$(dir $(po)))) &&) true

%.mo: %.po
	@$(BIN)/python -m babel.messages.frontend compile -i $< -o $@ -l $(notdir $(patsubst %/LC_MESSAGES/,%,$(dir $<))) 2>/dev/null

lock: env ## resolve the dependencies again, with hashes
	@$(BIN)/python -m uv pip compile pyproject.toml --all-extras --universal --generate-hashes --python-version 3.11 \
	  --no-annotate --no-header --quiet -o requirements.lock

clean: ## forget this clone's environment
	rm -rf .venv .build artifacts
