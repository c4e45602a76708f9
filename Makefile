# `make demo` and `make test` set up all they need in .venv; Python 3.11 or newer is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench lint setup clean

demo: setup
	$(BIN)/wsi-seg demo --out demo

# two processes, since the tests of clusters mostly wait; TESTS=-n0 for one
TESTS ?= -n 2 --dist loadgroup --no-loadscope-reorder
test: lint
	OMP_WAIT_POLICY=passive $(BIN)/pytest $(TESTS)

# an hour on 2 idle cores; writes benchmarks/README.md
bench: setup
	$(BIN)/python -m benchmarks.stages
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.growth

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed

# torch brings CUDA libraries: about 7 GB, a few minutes the first time
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

clean:
	rm -rf $(VENV) demo
