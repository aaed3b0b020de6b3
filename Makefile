# Everything a user or a developer types. `make help` lists it.

PYTHON ?= python3
EXTRA ?= cpu
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready-$(EXTRA)
CHECKS := .venv-checks/.ready
MLFLOW := .venv-mlflow/.ready
BACKENDS := .venv-backends/.ready
BASE ?= python:3.12-slim
CA ?=
INDEX ?=
NETRC ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-longest test-mlflow test-backends test-web check format seeds \
	accuracy ablation bench workers chaos chaos-nights chaos-storage chaos-tune wheel sbom image image-test \
	image-sizes mutants gate picture lock lock-peers clean
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

TESTS := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: $(READY) ## Run the tests
	@$(TESTS) -m 'not slow and not checks and not mlflow and not backends and not web' $(ARGS)

test-slow: $(READY) ## Run the long proofs, but for those with a target of their own (12 minutes)
	@$(TESTS) -m 'slow and not longest' --ignore tests/test_image.py --ignore tests/tuning/test_killed.py $(ARGS)

test-longest: $(READY) ## Run the longest: a fortnight of nights, every row of the ablation (12 minutes)
	@$(TESTS) -m longest $(ARGS)

test-mlflow: $(READY) $(MLFLOW) ## Log runs to a real MLflow server (a minute)
	@$(BIN)/python -m pytest -q -m mlflow tests/report/test_mlflow_server.py $(ARGS)

$(MLFLOW): scripts/mlflow.lock | $(READY)
	@echo 'setting up .venv-mlflow: a minute the first time'
	@rm -rf .venv-mlflow && $(BIN)/python -m venv --without-pip .venv-mlflow
	@UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --python .venv-mlflow/bin/python \
		--require-hashes --requirements scripts/mlflow.lock
	@touch $@

test-backends: $(READY) $(BACKENDS) ## Open published runs with Keras on JAX and PyTorch (a minute)
	@$(BIN)/python -m pytest -q -m backends tests/results/test_backends.py $(ARGS)

# PyTorch's build for the CPU isn't everywhere to be had; its tests are skipped where it is not.
$(BACKENDS): scripts/backends.lock scripts/bench/peers/torch.txt | $(READY)
	@echo 'setting up .venv-backends: a minute the first time'
	@rm -rf .venv-backends && $(BIN)/python -m venv --without-pip .venv-backends
	@UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --python .venv-backends/bin/python \
		--require-hashes --requirements scripts/backends.lock
	@export UV_SYSTEM_CERTS=1 UV_FIND_LINKS="$${UV_FIND_LINKS-$$(echo $$PIP_FIND_LINKS | tr ' ' ,)}"; \
		install() { $(BIN)/uv pip install --quiet --python .venv-backends/bin/python \
			--require-hashes --requirements scripts/bench/peers/torch.txt "$$@"; }; \
		install 2>/dev/null || install --torch-backend cpu || echo 'PYTORCH IS NOT TRIED HERE'
	@touch $@

test-web: $(READY) ## Open the reports in a real browser, and keep what it shows (2 minutes; look at it)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		$(BIN)/playwright install chromium || true
	@$(BIN)/python -m pytest -q -m web tests/report/test_web.py $(ARGS)

check: $(READY) $(CHECKS) ## Lint, check the format, the types, the layers, the manifests and the Dockerfile
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q -m checks tests/test_manifests.py tests/test_monitoring.py \
		tests/test_trainer.py tests/test_workflows.py

$(CHECKS): scripts/checks.lock | $(READY)
	@echo 'setting up .venv-checks: a minute the first time'
	@rm -rf .venv-checks && $(BIN)/python -m venv --without-pip .venv-checks
	@UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --python .venv-checks/bin/python \
		--require-hashes --requirements scripts/checks.lock
	@touch $@

format: $(READY) ## Put the code into the project's format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

seeds: $(READY) ## Measure the accuracy over five seeds (ARGS="--held-out -- --epochs 5" to tune)
	@$(BIN)/python scripts/bench/accuracy.py --preset reference $(ARGS)

accuracy: $(READY) ## Measure what each preset reaches, over five seeds (hours; ARGS="--preset fast")
	@$(BIN)/python scripts/bench/accuracy.py $(ARGS)

ablation: $(READY) ## Measure on held-out images what earns its place (an hour; ARGS="--preset cnn")
	@$(BIN)/python scripts/bench/ablation.py $(ARGS)

bench: $(READY) ## Compare with Keras, PyTorch and JAX (an hour; ARGS=--quick, ARGS="--only mlp")
	@$(BIN)/python scripts/bench/compare.py $(ARGS)

workers: $(READY) ## Measure when a second worker pays (half an hour; ARGS=--quick)
	@$(BIN)/python scripts/bench/workers.py $(ARGS)

chaos: $(READY) ## Kill trainings and workers, really, and compare every byte (70 minutes)
	@$(BIN)/python scripts/chaos/kill.py
	@$(BIN)/python scripts/chaos/kill.py --kills 40 --terms 80 \
		--flags "--preset cnn --epochs 2 --dropout 0.2 --validation 0.1"
	@$(BIN)/python scripts/chaos/kill.py --kills 6 --terms 0 --flags "--ensemble 3 --epochs 2"
	@$(BIN)/python scripts/chaos/workers.py
	@$(BIN)/python scripts/chaos/workers.py --workers 2 --times 5 \
		--flags "--preset cnn --epochs 8 --dropout 0.2 --validation 0.1"

wheel: $(READY) ## Build the wheel into dist/ (uvx --from './dist/mnist_job-....whl[cpu]' mnist-job train)
	@rm -rf dist/*.whl
	@UV_SYSTEM_CERTS=1 $(BIN)/uv build --quiet --wheel --out-dir dist \
		--require-hashes --build-constraints requirements.lock
	@ls dist/*.whl

sbom: wheel ## List what wheel and image are made of, as CycloneDX, in dist/ (EXTRA=gpu)
	@$(BIN)/python scripts/sbom.py wheel $(EXTRA) --wheel dist/*.whl > dist/wheel-$(EXTRA).cdx.json
	@$(BIN)/python scripts/sbom.py image $(EXTRA) > dist/image-$(EXTRA).cdx.json
	@ls dist/*-$(EXTRA).cdx.json

image: ## Build mnist-job:<version> with docker, podman or buildah (EXTRA=gpu, BASE=, CA=, INDEX=, NETRC=)
	@CA="$(CA)" INDEX="$(INDEX)" NETRC="$(NETRC)" scripts/image build $(EXTRA) $(BASE)

image-test: $(READY) ## Build the image on a base of Debian's own and run it as a pod would (root)
	@$(BIN)/python -m pytest -q -m slow tests/test_image.py $(ARGS)

image-sizes: ## Print what the image weighs, and what in it does
	@scripts/image sizes $(EXTRA)

chaos-storage: $(READY) ## Misuse files, S3 and GCS, and print what came of it (an hour; best alone)
	@$(BIN)/python scripts/chaos/storage.py $(ARGS)

chaos-nights: $(READY) ## Kill nights between any two writes, and let nights race (6 minutes)
	@$(BIN)/python scripts/chaos/nights.py $(ARGS)

chaos-tune: $(READY) ## Kill a study of sixteen trials at random points, and compare it (4 minutes)
	@$(BIN)/python -m pytest -q -s -n 0 -m slow tests/tuning/test_killed.py $(ARGS)

mutants: $(READY) ## Break storage, checkpoints and publishing on purpose: does a test fail? (ARGS=--only gcs)
	@$(BIN)/python scripts/mutants/run.py $(ARGS)

gate: $(READY) ## Simulate sixty nights of the gate, with and without an anchor (2 minutes)
	@$(BIN)/python scripts/gate/simulate.py $(ARGS)

picture: $(READY) ## Draw the README's terminal from a real `make train`
	@$(BIN)/python scripts/terminal.py $(ARGS)

lock: ## Resolve the dependencies anew into requirements.lock
	@test -x $(BIN)/uv || $(MAKE) --no-print-directory setup
	@UV_SYSTEM_CERTS=1 $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --all-extras --group dev --group peers --group image \
		--custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml
	@UV_SYSTEM_CERTS=1 $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --group checks \
		--custom-compile-command 'make lock' --output-file scripts/checks.lock
	@UV_SYSTEM_CERTS=1 $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --group mlflow \
		--custom-compile-command 'make lock' --output-file scripts/mlflow.lock
	@UV_SYSTEM_CERTS=1 $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --group backends \
		--custom-compile-command 'make lock' --output-file scripts/backends.lock

# Where builds of PyTorch without CUDA are: its own index, or TORCH_FROM="--find-links FOLDER".
TORCH_FROM ?= --torch-backend cpu
PEER := ../../../$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command 'make lock-peers'

lock-peers: $(READY) ## Resolve the libraries that `make bench` compares with anew
	@export UV_SYSTEM_CERTS=1 && cd scripts/bench/peers && \
		$(PEER) --universal --output-file jax.txt jax.in && \
		$(PEER) --python-platform linux $(TORCH_FROM) --output-file torch.txt torch.in

clean: ## Remove the environment and all caches, but no run
	@rm -rf dist .venv .venv-checks .venv-mlflow .venv-backends .prometheus .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find job tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
