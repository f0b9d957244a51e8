# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: docs examples venv lint format test quick fuzz programs demo bench bench-quick clean

venv: $(STAMP)

# torch first: another package that asks for it would pull a CUDA build of several GB.
# For the CPU build on a machine where pip finds another one first: make venv PIP_TORCH="--index-url <an index>".
PIP_TORCH ?=
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_TORCH) torch==2.13.0
	$(BIN)/pip install --quiet -e '.[test]'
	touch $(STAMP)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: venv
	$(BIN)/python -m pytest -q -n 2

quick: venv
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not fuzz"

# Random cases at any length: make fuzz N=100000
N ?= 2000
fuzz: venv
	CE_FX_FUZZ_EXAMPLES=$(N) $(BIN)/python -m pytest -q -n 2 -m fuzz --timeout 0

# Random programs of sums by seed, in parts that can be gone on with: about four a second and core.
programs: venv
	$(BIN)/python -m tests.branches --count $(N) --out programs.json

demo: venv
	OMP_NUM_THREADS=2 $(BIN)/python -m examples.demo

# Pages with every example run; a warning is an error. They are in docs/_build/index.html.
docs: venv
	$(BIN)/pip install --quiet -e '.[docs]'
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build

# What the examples print, on this machine, into examples/outputs.
examples: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m examples --write

bench: venv
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks.table --threads 2

bench-quick: venv
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks.table --threads 2 --rank .25 --quick

clean:
	rm -rf .venv build dist
