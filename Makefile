# Every target does its own set-up; a second call finds everything in place and starts at once.
# `make` lists the targets. ARGS goes to the command behind a target: make tour ARGS="--only 7".

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# What the installed packages depend on. A stamp inside the virtual environment dies with it.
INPUTS := pyproject.toml constraints.txt scripts/make-venv

.DEFAULT_GOAL := help
.PHONY: help setup servers servers-required tour test test-all check bench conformance soak mutants docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 — \2/p' Makefile

setup: $(VENV)/.ready servers ## make .venv and install everything, servers included
	@echo "setup: ready"

$(VENV)/.ready: $(INPUTS)
	@scripts/make-venv 3.11 $(VENV)

.venv-%/.ready: $(INPUTS)
	@scripts/make-venv $* .venv-$*

# Without a server the tour still runs, on the embedded engines; the tests need every one.
servers:
	@scripts/install-servers || true

servers-required:
	@scripts/install-servers --required

tour: $(VENV)/.ready servers ## all ten strategies on real engines
	@$(BIN)/cachewright tour $(ARGS)

# Two processes: most tests wait for servers, leases and other processes rather than compute.
test: $(VENV)/.ready servers-required ## the whole test suite
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

test-all: test .venv-3.12/.ready .venv-3.13/.ready ## the suite on 3.11, 3.12 and 3.13
	@for version in 3.12 3.13; do \
		echo "test: Python $$version"; \
		.venv-$$version/bin/python -m pytest -q -n 2 --dist loadfile $(ARGS) || exit 1; \
	done

check: $(VENV)/.ready ## lint, format and types
	@result=0; \
	$(BIN)/ruff check . || result=1; \
	$(BIN)/ruff format --check -q . || { echo "format: run $(BIN)/ruff format ."; result=1; }; \
	$(BIN)/mypy || result=1; \
	exit $$result

bench: $(VENV)/.ready servers ## side by side with peers, as ratios of one run
	@$(BIN)/python -m benchmarks $(ARGS)

conformance: $(VENV)/.ready servers ## where caching libraries break, as a matrix of probes
	@$(BIN)/python -m benchmarks.conformance $(ARGS)

soak: $(VENV)/.ready servers-required ## 100,000 simulated runs and the long-running tests (ARGS="--minutes 10")
	@$(BIN)/python -m tests.soak $(ARGS)

mutants: $(VENV)/.ready ## deliberate faults in the protocol: every one must be caught
	@$(BIN)/python -m tests.sim.mutants $(ARGS)

docs: $(VENV)/.ready ## check the links of the documentation
	@$(BIN)/python scripts/check_docs.py

clean: ## remove everything that make made, virtual environments included
	@rm -rf .venv .venv-* build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
