# Every target sets itself up: the environment is rebuilt only when requirements.lock changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes start seconds sooner when the bytecode of what they import is kept.
unexport PYTHONDONTWRITEBYTECODE
READY := $(VENV)/.ready

.PHONY: help setup demo test check kill-campaign kill-campaign-ray ensemble bench lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

$(READY): requirements.lock
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(READY)  ## create .venv with the locked packages

check: $(READY)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(READY)  ## synthetic vehicles -> shards -> PPT on two workers -> report, in a few minutes
	$(BIN)/python jobs/make_synthetic.py --root data/demo-raw
	$(BIN)/python jobs/make_shards.py data/demo-raw data/demo-shards --no-ray name=synthetic
	$(BIN)/python jobs/train_ppt.py --config jobs/configs/demo.yaml

test: check  ## the checks and the default test suite
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --no-loadscope-reorder

kill-campaign: $(READY)  ## 50 kills of a training without Ray: nothing acknowledged may be lost
	$(BIN)/python -m pytest -m slow tests/integration

kill-campaign-ray: $(READY)  ## 5 kills of workers and drivers of a training on local Ray
	$(BIN)/python -m pytest -m slow tests/cluster/test_kill_campaign.py tests/cluster/test_preemption.py

ensemble: $(READY)  ## the pixel-space ensemble trained on local Ray: too long for the default suite
	$(BIN)/python -m pytest -m slow tests/cluster/test_pixel_ensemble.py

bench: $(READY)  ## all benchmarks, results as JSON below build/benchmarks
	@for name in loader masks triplet step ranking rerank ray_overhead; do \
	  echo "== $$name"; $(BIN)/python -m tests.benchmarks.bench_$$name --output build/benchmarks/$$name.json || exit 1; done

lock: $(READY)  ## resolve the newest packages into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --upgrade --quiet -o requirements.lock

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
