# Everything a newcomer types. `make demo` and `make test` make the environment when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= flows/configs/glyphs.yaml

# Two cores are the yardstick of the project; telemetry of Prefect stays off here.
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export DO_NOT_TRACK = 1

.PHONY: install demo test test-all lint format bench bench-check evidence clean help

help:
	@echo "make demo    images -> six specialists -> label stores -> one student -> report"
	@echo "make test    the test suite, without tests that start a server with a worker or take a minute"
	@echo "make test-all    all tests, about 15 minutes"
	@echo "make lint    ruff and mypy"
	@echo "make bench   speed beside targets and peers, in one table (under half an hour)"
	@echo "make bench-check    its short form; fails where a figure falls short by over 15 %"
	@echo "make evidence    all else that the README quotes: sizes, accuracy, faults (hours)"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/concentrate run $(CONFIG)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not service"

# Tests with a worker start several processes at once: beside others they would only be slower.
test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m service

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy storage_schemas pipeline flows

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache

# Alone on the machine: two programs on two cores slow each other down several times over.
bench: install
	$(BIN)/python benchmarks/suite.py

bench-check: install
	$(BIN)/python benchmarks/suite.py --check

# What the README says beside speed: sizes, accuracy, faults. Hours, most of them methods.py.
evidence: install
	$(BIN)/python benchmarks/code_error.py
	$(BIN)/python benchmarks/store_bytes.py
	$(BIN)/python benchmarks/inspect_speed.py
	$(BIN)/python benchmarks/prefect_overhead.py
	$(BIN)/python benchmarks/paper_plan.py
	$(BIN)/python benchmarks/dask_scaling.py
	$(BIN)/python benchmarks/demo_accuracy.py
	$(BIN)/python benchmarks/kill_campaign.py
	$(BIN)/python benchmarks/corruption_campaign.py
	$(BIN)/python benchmarks/methods.py --processes 2
	$(BIN)/python benchmarks/methods_table.py --readme
