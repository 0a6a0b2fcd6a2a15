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
.PHONY: help setup demo test test-fast test-second-chain lint format contracts docs dist clean

help:
	@echo "make demo     set up, then run the network once: buy an inference, audit it, catch a cheat"
	@echo "make test     set up, then lint and run every test"
	@echo "make test-second-chain  the demo on Anvil, which make test leaves out"
	@echo "make lint     ruff, mypy --strict, forge fmt"
	@echo "make format   rewrite the sources in the house format"
	@echo "make contracts  recompile the contracts into efedllm/chain (artifacts, contracts.py)"
	@echo "make docs     write the reference pages, build the documents as a site in build/site"
	@echo "make dist     build the source distribution and the wheel into build/dist"

setup: $(VENV)/.ready node_modules/.ready

# torch comes first: resolving it through another package can pull several GB of CUDA libraries.
$(VENV)/.ready: pyproject.toml constraints.txt setup.py $(wildcard efedllm/kernels/*.[ch] efedllm/kernels/products/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing the Python packages into $(VENV) (a few minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,ray]'
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

# Installed on demand: neither the set-up nor the tests need the site's tool.
$(VENV)/.docs: pyproject.toml | setup
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# `--strict`: a link to a missing page or anchor fails.
docs: $(VENV)/.docs
	@$(BIN)/python -m tools.docs
	@$(BIN)/zensical build --strict

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

# What the suite shows on one chain, on the other one.
test-second-chain: setup
	$(BIN)/pytest -m second_chain

test-fast: setup
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile -m "not network and not second_chain"

# The wheel is built from the source distribution, where no leftovers of earlier builds lie. A package index takes a
# Linux wheel only after `auditwheel repair`, which names the oldest glibc that it runs on.
dist: setup
	rm -rf build/dist
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("build/dist")'
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/dist build/dist/*.tar.gz

clean:
	rm -rf build out cache cache_hardhat .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
