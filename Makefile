# Two commands do everything: make quickstart, make test.
SHELL := /bin/bash
VENV_PYTHON := .venv/bin/python
MODEL := models/smollm2-135m
DATA := data/quickstart
RANKS ?= 2
# Processes that run tests, a file each at a time, in the order of the rooms: those that take longest come first.
TESTERS ?= 2
SIDE_BY_SIDE := -n $(TESTERS) --dist loadfile --no-loadscope-reorder
ARGS ?=

# The other variables that must be set before a process starts are in megatron_rlpr/system/process_environment.py. This
# one torchrun would set itself, with a warning.
export OMP_NUM_THREADS ?= 1

UV := build/uv/bin/uv
RESOLVE_CUDA := $(UV) pip compile setup.py --extra cuda --extra test \
	--python-version 3.12 --python-platform x86_64-unknown-linux-gnu \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet

.PHONY: help environment model checkpoint data quickstart test test-te lint bench check-cuda-pins cuda-pins clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

environment:  ## create .venv (a finished one is kept)
	@./setup_env.sh cpu

model: environment  ## fetch the 135M model as a Hugging Face folder (a complete one is kept)
	@$(VENV_PYTHON) -m tools.fetch_model --out $(MODEL)

checkpoint: model  ## convert it to a Megatron checkpoint (a complete one is kept)
	@$(VENV_PYTHON) -m checkpoint_conversion.hf_to_megatron --hf $(MODEL) --out $(MODEL)-megatron

data: environment  ## generate the quickstart's questions (complete ones are kept)
	@$(VENV_PYTHON) -m tools.prepare_data quickstart --out $(DATA)

quickstart: checkpoint data  ## train the 135M model and show what it learnt (ARGS="key=value ..." changes keys)
	$(VENV_PYTHON) -m tools.launch --nproc-per-node $(RANKS) pretrain_rlpr.py --config examples/quickstart/config.yaml $(ARGS)
	@$(VENV_PYTHON) -m tools.report --config examples/quickstart/config.yaml $(ARGS)

test: model lint  ## run lint, then all tests, two at a time (TESTERS=N; ARGS=... goes to pytest instead, and test-te is left out)
	$(VENV_PYTHON) -m pytest $(or $(ARGS),$(SIDE_BY_SIDE))
	$(if $(ARGS),,$(MAKE) test-te)

test-te: environment  ## run the tests of Transformer Engine's layers, on emulated kernels (ARGS=... goes to pytest)
	$(VENV_PYTHON) -m pytest tests/transformer_engine $(or $(ARGS),$(SIDE_BY_SIDE))

lint: environment  ## run ruff, mypy and the import contracts
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy
	.venv/bin/lint-imports --no-logo

bench: model  ## run all benchmarks
	for part in packing reward head score update handover convert; do $(VENV_PYTHON) -m tools.bench $$part || exit 1; done

check-cuda-pins: $(UV)  ## resolve the cuda extra for Python 3.12 with its pins; installs nothing
	$(RESOLVE_CUDA) --constraint requirements/cuda-constraints.txt --output-file build/cuda-pins.txt
	diff <(grep -v '^#' requirements/cuda-constraints.txt) build/cuda-pins.txt
	@echo "the cuda extra resolves for Python 3.12 to exactly the $$(wc -l <build/cuda-pins.txt) pins of" \
		requirements/cuda-constraints.txt

cuda-pins: $(UV)  ## write requirements/cuda-constraints.txt again, after a change of the cuda extra
	$(RESOLVE_CUDA) --upgrade --output-file build/cuda-pins.txt
	cat <(grep '^#' requirements/cuda-constraints.txt) build/cuda-pins.txt >build/cuda-constraints.txt
	mv build/cuda-constraints.txt requirements/cuda-constraints.txt

$(UV): | environment
	$(VENV_PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet --disable-pip-version-check uv==0.13.9

clean:  ## remove the environment and caches; models, data and runs stay
	rm -rf .venv build *.egg-info .setup_env.log .setup_env.lock
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
