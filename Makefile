# Two commands: `make demo` (install, run the main job on embedded real data) and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# processes that run the tests, each on one core; a worker needs up to 2 GB
WORKERS ?= auto

.PHONY: demo test lint install clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: install
	$(BIN)/python -m compress_cli demo --output demo-run --overwrite

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4

clean:
	rm -rf .venv demo-run
