# make up, make test: all there is to know. `make help` lists the rest.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
CONFIG ?= serve_config.yaml
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help up down env install install-dev lint format unit live test bench bench-all lock proto

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: install ## Install, start the endpoint, wait until it is ready [CONFIG=serve_config.yaml] [PORT=8000] [GRPC_PORT=9000]
	@$(VENV)/bin/model-endpoint up $(CONFIG) $(if $(PORT),--port $(PORT)) $(if $(GRPC_PORT),--grpc-port $(GRPC_PORT))

down: ## Stop the endpoint and everything that belongs to it
	@if [ -x $(PY) ]; then $(VENV)/bin/model-endpoint down; else echo "nothing is running"; fi

env: ## Print what another shell needs to reach the running cluster: eval "$(make -s env)"
	@$(VENV)/bin/model-endpoint env

test: install-dev ## Install what is needed, then lint, types and all tests
	@$(MAKE) --no-print-directory lint
	$(PY) -m pytest

lint: install-dev ## Style, format and types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

unit: install-dev ## The tests that need no Ray cluster
	$(PY) -m pytest -m "not live"

live: install-dev ## The tests that start a Ray cluster of their own
	$(PY) -m pytest -m live

format: install-dev ## Let ruff fix and format everything
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

bench: install-dev ## Us beside Ray as documented, the best peers, FastAPI and the bare loop: a quarter of an hour, the whole machine
	$(PY) -m benchmarks venvs
	$(PY) -m benchmarks peers

bench-all: install-dev ## All peers and loads, the front door, batching in virtual time, growth: about two hours
	$(PY) -m benchmarks venvs
	$(PY) -m benchmarks peers --sides all --cells all --open 0.5,0.8
	$(PY) -m benchmarks front-door
	$(PY) -m benchmarks growth
	$(PY) -m benchmarks batching

lock: ## Renew requirements.lock and requirements-dev.lock from pyproject.toml [UPGRADE=1]
	@.ci/lock

# The compiler of the gRPC that is locked, in a folder of its own: newer code would not run with it.
proto: install ## Renew serve_app/rpc/*_pb2*.py from the .proto files
	@$(PIP) --target .state/protoc "grpcio-tools==$$($(PY) -c 'import grpc; print(grpc.__version__)')" && \
	PYTHONPATH=.state/protoc $(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. serve_app/rpc/*.proto

# A stamp holds the hash of what was installed, so that a change installs again and nothing else does.
install: $(PY)
	@want=$$(cat requirements.lock pyproject.toml | sha256sum); \
	if [ "$$(cat $(VENV)/.installed 2>/dev/null)" != "$$want" ]; then \
		echo "installing into $(VENV): once, some minutes" && rm -f $(VENV)/.installed && \
		$(PIP) --no-deps --require-hashes --requirement requirements.lock && \
		$(PIP) --no-warn-conflicts "$(TORCH)" && \
		$(PIP) --no-deps --no-build-isolation --editable . && \
		echo "$$want" >$(VENV)/.installed; \
	fi

install-dev: install
	@want=$$(cat requirements-dev.lock | sha256sum); \
	if [ "$$(cat $(VENV)/.installed-dev 2>/dev/null)" != "$$want" ]; then \
		$(PIP) --no-deps --require-hashes --requirement requirements-dev.lock && echo "$$want" >$(VENV)/.installed-dev; \
	fi

$(PY):
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			"$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; exit 0; \
		fi; \
	done; \
	echo "Python 3.11 or newer is needed: install it, or name it: make up PYTHON=/path/to/python3" >&2; exit 1
