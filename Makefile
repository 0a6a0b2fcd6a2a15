# Two commands matter: `make demo` and `make test`. Both set up everything they need inside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The binary itself: npm's launcher always exits 0, whatever forge found.
FORGE = $(firstword $(wildcard node_modules/@foundry-rs/forge-*/bin/forge))
TEST_WORKERS ?= 2
export OMP_NUM_THREADS ?= 1
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint format contracts clean

help:
	@echo "make demo     set up, then run the network once: buy an inference, audit it, catch a cheat"
	@echo "make test     set up, then lint and run every test"
	@echo "make lint     ruff, mypy --strict, forge fmt"
	@echo "make format   rewrite the sources in the house format"
	@echo "make contracts  recompile the contracts into efedllm/chain (artifacts, contracts.py)"

setup: $(VENV)/.ready node_modules/.ready

# torch comes first and pinned: resolving it through another package can pull several GB of CUDA libraries.
$(VENV)/.ready: pyproject.toml setup.py $(wildcard efedllm/kernels/*.[ch] efedllm/kernels/products/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing the Python packages into $(VENV) (a few minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Not `npm ci`: it refuses lock files of packages with optional binaries for other platforms.
node_modules/.ready: package.json
	@command -v node >/dev/null || { echo "Node.js 20 or newer is needed for the local testnet and the Solidity tools"; exit 1; }
	@echo "installing the Solidity tools and the local testnet into node_modules"
	@npm install --no-audit --no-fund --no-package-lock --loglevel=error
	@touch $@

# Proves once per change of the sources that the committed bytecode is what the compiler makes of them.
build/contracts.ready: $(wildcard contracts/*.sol contracts/*/*.sol) efedllm/chain/artifacts | setup
	@$(BIN)/python -m efedllm_deploy.compile --check
	@mkdir -p build && touch $@

contracts: setup
	$(BIN)/python -m efedllm_deploy.compile

demo: setup build/contracts.ready
	@$(BIN)/efedllm demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(FORGE) fmt --check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(FORGE) fmt

# Files of tests stay together: what a module starts, it starts once.
test: lint
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile

test-fast: setup
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile -m "not network"

clean:
	rm -rf build out cache cache_hardhat .mypy_cache .ruff_cache .pytest_cache .hypothesis
