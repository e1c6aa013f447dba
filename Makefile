# `make quickstart`, `make test` and the benchmarks; all start from a fresh clone.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR

PYTHON ?= python3
VENV := .venv
# The benchmarks measure this binary instead of building one: `make bench-compare FLETCHING=path`.
GIVEN := $(FLETCHING)
FLETCHING := $(CARGO_TARGET_DIR)/debug/fletching
export FLETCHING

.PHONY: help test quickstart build fmt lint format-check test-rust test-clients redis postgres openssl torch clean fuzz
.PHONY: bench-compare bench-density bench-scan bench-limits bench-trickled bench-serving bench-ingest bench-ready bench-environments

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
test-rust: redis postgres $(VENV)-iceberg/.ready ## clippy, unit and integration tests; leaves the binary
	cargo test --locked --all-targets

test-clients: redis postgres openssl torch $(VENV)/.ready $(VENV)-iceberg/.ready | test-rust ## the stock drivers against the built binary
	$(VENV)/bin/python -m pytest tests/clients

# libFuzzer by what the stable compiler has of it: what it counts, but no sanitizers.
fuzz: SECONDS ?= 60
fuzz: export RUSTFLAGS = --cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cdebug-assertions $(addprefix \
	-Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table trace-compares)
fuzz: ## throws bytes at a target of tests/fuzz: TARGET=online_entry or flight_request, SECONDS=60
	cd tests/fuzz && cargo run --locked --release --target $$(rustc --print host-tuple) --bin $(TARGET) -- \
		-max_total_time=$(SECONDS) -max_len=4096

# benches/compare: figures for RESULTS.md, on a quiet machine. SIZE=S or M, RUNS=3, BENCH_DATA=directory for the data.
BENCH_VENV ?= .venv-bench
BENCH_DATA ?= $(CURDIR)/data/bench
RUNS ?= 3
export BENCH_DATA
export BENCH_FEAST_PYTHON = $(abspath $(BENCH_VENV)-feast)/bin/python
BENCH = $(BENCH_VENV)/bin/python benches/compare
# What was measured; of a binary that is given nobody knows.
bench-%: export BENCH_COMMIT = $(if $(GIVEN),,$(shell git describe --always --dirty))
bench-%: export BENCH_DEPS = $(CARGO_TARGET_DIR)/release/deps
bench-%: export FLETCHING = $(or $(GIVEN),$(CARGO_TARGET_DIR)/release/fletching)

bench-compare: SIZE ?= S
bench-compare: bench-ready ## point-in-time join against Polars, DuckDB, chDB, pandas and Feast; SIZE=S|M RUNS=3
	$(BENCH)/compare.py --size $(SIZE) --runs $(RUNS)

bench-density: SIZE ?= S
bench-density: bench-ready ## the same labels against ten times the events per entity
	$(BENCH)/density.py --size $(SIZE) --runs $(RUNS)

bench-scan: SIZE ?= S
bench-scan: bench-ready ## SELECT * over the wire, and selective filters, against DuckDB
	$(BENCH)/scan.py --size $(SIZE) --runs $(RUNS)

bench-trickled: SIZE ?= S
bench-trickled: bench-ready ## the same query after a day of small commits
	$(BENCH)/trickled.py --size $(SIZE) --runs $(RUNS)

bench-limits: SIZE ?= M
bench-limits: bench-ready ## little memory, a TTL, ten chained feature groups
	$(BENCH)/limits.py --size $(SIZE) --runs $(RUNS)

bench-serving: SIZE ?= S
bench-serving: bench-environments redis ## LATEST by every path against raw Redis, Feast and the bare protocol
# The load generator, and with it the binary.
	cargo bench --locked --no-run --bench serving
	$(BENCH)/serving.py --size $(SIZE) --runs $(RUNS)

bench-ingest: SIZE ?= S
bench-ingest: bench-environments redis ## writes: bulk, from many at a time, single, against pyiceberg, DuckDB and Feast
	cargo bench --locked --no-run --bench serving
	$(BENCH)/ingest.py --size $(SIZE) --runs $(RUNS)

bench-environments: $(BENCH_VENV)/.ready $(BENCH_VENV)-feast/.ready

bench-ready: bench-environments
	$(if $(GIVEN),,cargo build --locked --release)

clean: ## the Python environments and the data of quickstart and benchmarks; `cargo clean` does the rest
	rm -rf $(VENV) $(VENV)-iceberg .venv-bench .venv-bench-feast data/quickstart data/bench

# Debian and Ubuntu; elsewhere install redis-server, PostgreSQL, openssl and PyTorch yourself.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq

redis:
	@command -v redis-server >/dev/null || { $(SUDO) $(APT) update; $(SUDO) $(APT) install -y --no-install-recommends redis-server; }

postgres:
	@ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null || { $(SUDO) $(APT) update; $(SUDO) $(APT) install -y --no-install-recommends postgresql; }

openssl:
	@command -v openssl >/dev/null || { $(SUDO) $(APT) update; $(SUDO) $(APT) install -y --no-install-recommends openssl; }
# PyTorch for one example: Debian's, as that of PyPI brings gigabytes for GPUs.
torch:
	@for python in $(VENV)/bin/python /usr/bin/python3; do $$python -c 'import torch' 2>/dev/null && exit; done; \
	$(SUDO) $(APT) update; $(SUDO) $(APT) install -y --no-install-recommends python3-torch

$(VENV)/.ready: tests/clients/requirements.txt
$(VENV)-iceberg/.ready: tests/clients/requirements-iceberg.txt
$(BENCH_VENV)/.ready: benches/compare/requirements.txt
$(BENCH_VENV)-feast/.ready: benches/compare/requirements-feast.txt
%/.ready:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(SUDO) $(APT) update; $(SUDO) $(APT) install -y python3-venv; }
	$(PYTHON) -m venv $*
	$*/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@
