# `make demo` and `make test` set up what is missing (a virtual environment in .venv) and run.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/recipe demo --overwrite

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

bench: .venv/installed
	$(BIN)/python -m benchmarks

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
