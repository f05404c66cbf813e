# Two commands do everything; each makes the virtual environment first, and again only when its inputs changed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: math test lint clean

## Learn arithmetic reasoning with influence-filtered PPO on this machine. More options: make math ARGS="--filter paper"
math: $(VENV)/.installed
	$(BIN)/python -m ippo.recipes.math $(ARGS)

## Everything that CI runs: style, types, doctests, tests.
test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ippo

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs
