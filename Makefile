# Two commands for a newcomer: make demo, make test. Each makes the environment if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install demo test long faults lint bench scale clean

install: $(VENV)/ready

demo: $(VENV)/ready
	$(BIN)/python pipeline/run.py --demo

test: $(VENV)/ready
	$(BIN)/python -m pytest

long: $(VENV)/ready
	$(BIN)/python -m pytest -m long

faults: $(VENV)/ready
	$(BIN)/python -m pytest -m faults

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready
	$(BIN)/python -m benchmarks

scale: $(VENV)/ready
	$(BIN)/python -m benchmarks.scale

# torch comes first and by its exact version, so that pip takes the build that the platform offers.
$(VENV)/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
