# Every target sets up what it needs: a virtual environment in .venv with the locked versions.
PYTHON ?= python3
BIN := .venv/bin
STORE ?= runs

.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: .venv/installed ## Set up .venv from the locked versions

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(0 if ok else "kdbench needs Python 3.11 to 3.13, but " + sys.executable + " is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

bench: install ## The main job: sweep every method on bundled data and print the leaderboard
	$(BIN)/kdbench sweep digits --store $(STORE)

test: install ## Run the tests, in one process more than there are cores, as some of them wait
	$(BIN)/pytest -n $$($(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 1)') --dist worksteal

test-slow: install ## Run the tests that take minutes
	$(BIN)/pytest -m "slow and not fault"

test-faults: install ## Kill, fill, cut and flip all that can be; writes results/faults
	$(BIN)/pytest -m fault --faults results/faults

docs: install ## Write docs/methods.md anew from the methods, and docs/toml.md from the schemas
	$(BIN)/kdbench methods --format markdown > docs/methods.md
	$(BIN)/python -m kdbench.sweeps.cli.toml_reference > docs/toml.md

pages: install ## Make the tables of README.md and results again from results/evidence
	$(BIN)/python -m kdbench.sweeps.cli.pages

site: install ## Build the documentation in site/, and all boards, studies and tables in site/boards/, to be opened from disk
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	$(BIN)/kdbench report --store results/evidence --out site/boards

lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: ## Write requirements.lock anew from pyproject.toml
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --quiet --output-file requirements.lock

.PHONY: help install bench test test-slow test-faults docs pages site lint lock
