# One entry for people and CI: every target does its own set-up from a bare clone.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
# The stamp names this directory: a copied or moved checkout would otherwise run the old one's code
# through its editable install, without a word.
STAMP  := $(VENV)/.made-$(shell printf '%s' '$(CURDIR)' | cksum | cut -d' ' -f1)
# Extra arguments for pytest: make test ARGS='tests/kernel -k fault'
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help dev demo demo-life test check bench models try-models docs clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

dev: $(STAMP)  ## make .venv: this checkout, editable, with all that check and test need
	@echo '$(VENV) is ready: $(VENV)/bin/memosd --user, $(VENV)/bin/memctl status'

demo: try-models  ## start a daemon and watch two processes share memories through it
	@$(PY) -m memosd.tools.demo

demo-life: try-models  ## the same, and one memory through all its forms (some eight minutes)
	@$(PY) -m memosd.tools.demo --life

test: try-models  ## run the tests (ARGS='...' goes to pytest)
	@$(PY) -m pytest -q -n 2 $(ARGS)

check: $(STAMP)  ## formatting, lint, types, one-way imports
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-cache

bench: try-models  ## run every benchmark against its physical limit
	@$(VENV)/bin/memos-bench all

models: $(STAMP)  ## fetch the models of tests, benchmarks and demo into ~/.cache/memosd/models
	@$(PY) -m memosd.tools.models

# Without a registry all but what needs weights still runs.
try-models: $(STAMP)
	@$(PY) -m memosd.tools.models --optional

docs: $(STAMP)  ## write docs/syscalls.md and docs/man again, from the code
	@$(PY) -m memosd.tools.docs

clean:  ## remove .venv, caches and build output
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'memosd needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 dev' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'This Python cannot make a virtual environment. On Debian: apt install python3-venv' >&2; exit 1; }
	@echo 'Making $(VENV) (once) ...'
	@# No stamp of this directory: half made, or another checkout's.
	@[ -e $@ ] || rm -rf $(VENV)
	@[ -x $(PY) ] || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt setuptools
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable '.[dev,models]'
	@touch $@
