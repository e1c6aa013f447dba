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

.PHONY: help test quickstart build fmt lint format-check test-rust test-clients redis clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-14s %s\n", $$1, $$2 }'

test: format-check test-rust test-clients ## everything CI runs

quickstart: build $(VENV)/.ready ## New York's flights and weather: define, load, join, train, serve
	@$(VENV)/bin/python clients/python/quickstart.py

build: ## the binary
	cargo build --locked

fmt: ## formats the sources
	cargo fmt

lint: format-check ## formatting and clippy, warnings denied
	cargo clippy --locked --all-targets -- -D warnings

format-check:
	cargo fmt --check

# Clippy's driver is the compiler with more to say: one build lints, tests and links the binary, where `cargo clippy`
# beside `cargo test` would compile every dependency twice.
test-rust: export RUSTC_WORKSPACE_WRAPPER := clippy-driver
test-rust: export CLIPPY_ARGS := -Dwarnings__CLIPPY_HACKERY__
test-rust: redis ## clippy, unit and integration tests; leaves the binary
	cargo test --locked

test-clients: redis $(VENV)/.ready | test-rust ## the stock drivers against the built binary
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
