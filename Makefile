# Everything a user or a developer types. `make help` lists it.

PYTHON ?= python3
EXTRA ?= cpu
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready-$(EXTRA)

.DEFAULT_GOAL := help
.PHONY: help setup train test check format seeds chaos chaos-storage lock clean
.DELETE_ON_ERROR:

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  Flags go in ARGS: make train ARGS="--epochs 3 --seed 1". EXTRA=gpu installs the GPU build.'

setup: $(READY) ## Make the environment in .venv (the others do so by themselves)

$(READY): pyproject.toml requirements.lock scripts/setup
	@echo 'setting up .venv: a minute the first time'
	@PYTHON="$(PYTHON)" scripts/setup $(EXTRA)
	@rm -f .venv/.ready-* && touch $@

train: $(READY) ## Train the reference model on MNIST and publish it in runs/
	@$(BIN)/mnist-job train --log text $(ARGS)

test: $(READY) ## Run the tests
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 -m 'not slow' $(ARGS)

check: $(READY) ## Lint, check the format and the types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## Put the code into the project's format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

seeds: $(READY) ## Measure the accuracy over five seeds (ARGS="--held-out -- --epochs 5" to tune)
	@$(BIN)/python scripts/bench/seeds.py $(ARGS)

chaos: $(READY) ## Kill trainings with SIGKILL and SIGTERM and compare every byte (some 20 minutes)
	@$(BIN)/python scripts/chaos/kill.py $(ARGS)

chaos-storage: $(READY) ## Misuse files, S3 and GCS, and print what came of it (some 15 minutes)
	@$(BIN)/python scripts/chaos/storage.py $(ARGS)

lock: ## Resolve the dependencies anew into requirements.lock
	@test -x $(BIN)/uv || $(MAKE) --no-print-directory setup
	@UV_SYSTEM_CERTS=1 $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --all-extras --group dev --group peers \
		--custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml

clean: ## Remove the environment and all caches, but no run
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find job tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
