# Two commands do everything: make quickstart, make test.
SHELL := /bin/bash
PYTHON_IN_VENV := .venv/bin/python
MODEL := models/smollm2-135m
DATA := data/quickstart
RANKS ?= 2
ARGS ?=

# Read by the C library when a process starts (see megatron_rlpr/process_environment.py); torchrun sets OMP_NUM_THREADS to 1 by itself.
export OMP_NUM_THREADS ?= 1

.PHONY: help environment model data quickstart test lint bench check-cuda-pins clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

environment:  ## create .venv (a finished one is kept)
	@./setup_env.sh cpu

model: environment  ## the 135M model as a Hugging Face folder and as a Megatron checkpoint
	@$(PYTHON_IN_VENV) -m tools.fetch_model --out $(MODEL)
	@$(PYTHON_IN_VENV) -m checkpoint_conversion.hf_to_megatron --hf $(MODEL) --out $(MODEL)-megatron

data: environment  ## the quickstart's questions
	@$(PYTHON_IN_VENV) -m tools.prepare_data --out $(DATA)

quickstart: model data  ## train the 135M model and show what it learnt (ARGS="key=value ..." changes keys)
	.venv/bin/torchrun --nproc-per-node $(RANKS) pretrain_rlpr.py --config examples/quickstart/config.yaml $(ARGS)

test: model  ## all tests
	$(PYTHON_IN_VENV) -m pytest $(ARGS)

lint: environment  ## ruff and mypy
	$(PYTHON_IN_VENV) -m ruff check .
	$(PYTHON_IN_VENV) -m ruff format --check .
	$(PYTHON_IN_VENV) -m mypy

bench: model  ## all benchmarks
	for part in packing reward head score update; do $(PYTHON_IN_VENV) -m tools.bench $$part || exit 1; done

check-cuda-pins:  ## resolve the pins of the cuda extra for Python 3.12 (needs uv)
	uv pip compile --python-version 3.12 --python-platform x86_64-manylinux_2_28 --no-emit-index-url --quiet requirements/cuda.txt >/dev/null && echo "the cuda pins resolve for Python 3.12"

clean:  ## remove the environment, models, data and runs
	rm -rf .venv models data runs
