# The two commands of the project: `make quickstart` and `make test`. Both start from a fresh clone.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR

PYTHON ?= python3
VENV := .venv
FLETCHING := $(CARGO_TARGET_DIR)/debug/fletching
export FLETCHING

.PHONY: help test quickstart build fmt lint test-rust test-clients redis clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-14s %s\n", $$1, $$2 }'

test: lint test-rust test-clients ## everything CI runs

quickstart: build $(VENV)/.ready ## New York's flights and weather: define, load, join, train, serve
	@$(VENV)/bin/python clients/python/quickstart.py

build: ## the binary, with dependencies optimized
	cargo build --locked

fmt: ## formats the sources
	cargo fmt

lint: ## formatting and clippy, warnings denied
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

test-rust: redis ## unit and integration tests
	cargo test --locked

test-clients: redis build $(VENV)/.ready ## the stock drivers against the built binary
	$(VENV)/bin/python -m pytest tests/clients

clean: ## the Python environment and the quickstart's data; `cargo clean` does the rest
	rm -rf $(VENV) data/quickstart

# Debian and Ubuntu; elsewhere install redis-server yourself.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq

redis:
	@command -v redis-server >/dev/null || { $(SUDO) $(APT) update; $(SUDO) $(APT) install -y --no-install-recommends redis-server; }

$(VENV)/.ready: tests/clients/requirements.txt
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(SUDO) $(APT) update; $(SUDO) $(APT) install -y python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	@touch $@
