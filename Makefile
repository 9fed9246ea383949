# Every target sets itself up: a virtual environment in .venv, the package in editable mode, then the work.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt

WORKERS ?= auto

.PHONY: help install demo docs test test-slow check format test-lowest clean
help:            ## show this list
	@grep -E '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/.installed: EXTRA = dev
$(VENV)/.demo: EXTRA = demo
$(VENV)/.installed $(VENV)/.demo: pyproject.toml $(CONSTRAINTS)
	@echo "installing st-plugins[$(EXTRA)] into $(VENV), which takes a minute or more"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -c $(CONSTRAINTS) -e ".[$(EXTRA)]"
	touch $@

install: $(VENV)/.installed ## create .venv and install everything

demo: $(VENV)/.demo ## evaluate, compress, explain and adapt a real encoder, teach and match in a miniature world, offline
	$(BIN)/st-plugins demo --overwrite

test: $(VENV)/.installed ## run the tests (offline, without the slow, gpu and network ones)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.installed ## run the slow tests: blocks of README and docs, two processes, kill and resume, demo, compiled models
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "slow and not gpu and not network"

docs: $(VENV)/.installed ## build the documentation, offline: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: $(VENV)/.installed ## format, lint, types, docstrings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet st_plugins evaluation

format: $(VENV)/.installed ## rewrite files in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-lowest: ## run the tests with the lowest dependency versions that pyproject.toml allows
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

clean: ## remove environments and caches
	rm -rf .venv .venv-lowest build *.egg-info .mypy_cache .ruff_cache .pytest_cache
