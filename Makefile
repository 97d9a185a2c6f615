# `make book` and `make test` are all a new machine needs: both create .venv from requirements.lock first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := uv==0.13.8
JOBS ?= 2
# Matplotlib must not look for a screen, and every worker computes on its own core.
export MPLBACKEND := Agg
export PYTHONPATH := $(CURDIR)
# Without the compiled modules beside them, importing torch and the rest takes three times as long, in every kernel.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

help: ## List these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: run make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 cannot create a virtual environment: install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	@# For axe-core, the one file in it that the tests read (160 kB); the driver that it depends on (40 MB) is not needed.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps axe-playwright-python==0.1.8
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

env: $(READY) ## Create .venv from the lock

.PHONY: help env

book: $(READY) ## Execute every notebook (quick profile) and build the book
	@$(BIN)/kit run --profile quick --jobs $(JOBS)
	@$(BIN)/kit book

test: $(READY) ## Lint, types, tests, and every notebook compared with its committed outputs
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --nbval tests notebooks -n $(JOBS) --dist loadscope

lab: $(READY) ## Open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

baseline: $(READY) ## Execute the notebooks and refresh their committed outputs and the scoreboard
	$(BIN)/kit run --in-place --profile quick --jobs $(JOBS)
	$(BIN)/kit scoreboard

bench: $(READY) ## Time the methods against their unavoidable passes (BENCH=gradient for one family)
	$(BIN)/python -m tests.bench $(BENCH)

mutants: $(READY) ## Put faults into kit and into outputs, and list those that no test sees (MUTANTS="--n 200 --seed 1")
	$(BIN)/python -m tests.mutants --outputs --jobs $(JOBS) $(MUTANTS)

peers: $(READY) ## Install the other libraries that `make bench` measures beside ours
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock --editable '.[peers]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps torchattacks==3.5.1

grader: $(READY) ## Install nbgrader, which takes over where `kit lab` ends
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock --editable '.[lab]'

clean: ## Remove what was built and run; keep the environment
	rm -rf _build runs .pytest_cache .mypy_cache .ruff_cache

.PHONY: book test lab baseline bench mutants peers grader clean
