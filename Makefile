# `make demo` and `make test` set up what is missing (a virtual environment in .venv) and run.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench bench-estimators
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/recipe demo --overwrite

# Two processes with one thread each: test files side by side, and loops of threads that do not disturb each other.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

bench: .venv/installed
	$(BIN)/python -m benchmarks

bench-estimators: .venv-peers/installed
	.venv-peers/bin/python -m benchmarks estimators

.venv-peers/installed: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --editable . kronfluence==1.0.1 traker==0.3.2 dattri==0.3.0 \
	    captum==0.9.0 mlxtend cloudpickle distributed more-itertools numcodecs pyDeprecate
	.venv-peers/bin/python -m pip install --quiet --no-deps pyDVL==0.10.0
	touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && \
	    apt-get update -qq && apt-get install -qq --yes chromium > /dev/null; } || \
	    echo "No Chromium: the tests of the report in a browser will be skipped (apt-get install chromium)."
	touch $@
