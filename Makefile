# Everything a developer needs, from a bare clone. `make help` lists it.
#
# The virtual environment is .venv, with the pinned requirements. PYTHON chooses the interpreter, DJANGO the pinned
# set (dev: Django 5.2, django61: Django 6.1), VENV another folder for the environment, WORKERS the number of processes
# that tests are spread over (0: they run in pytest's own).

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
DJANGO ?= dev
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
# pip and npm keep caches in HOME, which a service or a container may not have.
export XDG_CACHE_HOME := $(CURDIR)/build/cache
export npm_config_cache := $(CURDIR)/build/cache/npm
endif
bin := $(VENV)/bin
environment := $(VENV)/installed-$(DJANGO)

.PHONY: help setup demo test soak bench-replication check docs node requirements clean bench-uploads bench-serving

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 - \2/p' Makefile

setup: $(environment) ## Make the virtual environment (.venv) with everything pinned

demo: $(environment) ## Run the example project: database, replicator and server in one terminal
	@exec $(bin)/python -m example_project.demo

test: $(environment) node ## Run every test against a real Postgres (ARGS="tests/unit -k checksum": some)
	@$(bin)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

soak: $(environment) node ## Run every test with large budgets, replication on every Postgres there is (hours)
	@LOCALSYNC_SOAK=1 $(bin)/python -m pytest $(ARGS)
	@for major in 16 15; do \
		test $$major = 16 -o -x /usr/lib/postgresql/$$major/bin/postgres || continue; \
		echo "Postgres $$major"; \
		LOCALSYNC_SOAK=1 LOCALSYNC_TEST_POSTGRES=$$major $(bin)/python -m pytest tests/integration/replication || exit 1; \
	done

bench-replication: $(environment) ## Measure the replicator (ARGS=--full: the sizes of the speed goals)
	@$(bin)/python -m benchmarks.replication $(ARGS)

bench-serving: $(environment) ## Measure streams beside the same bytes with no work behind them
	@$(bin)/python -m benchmarks.serving $(ARGS)

bench-uploads: $(environment) ## Measure uploads beside the same serializer in a loop
	@$(bin)/python -m benchmarks.uploads $(ARGS)

check: $(environment) ## Format, lint, types, architecture
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/mypy
	@$(bin)/python -m pytest -q tests/test_architecture.py

docs: $(environment) $(VENV)/installed-docs ## Build the documentation into build/docs
	@$(bin)/sphinx-build -q -W -b html docs build/docs && echo "open build/docs/index.html"

node: tests/sdk/node_modules/.package-lock.json

requirements: $(environment) ## Pin the requirements anew (ARGS=--upgrade for newer versions)
	@$(bin)/pip install -qq uv && PATH="$(abspath $(bin)):$$PATH" requirements/compile $(ARGS)

clean: ## Remove what setup and tests made; the demo's data stays
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/sdk/node_modules

$(bin)/pip: | requirements/find-python
	@python=$$(requirements/find-python $(PYTHON)) && echo "Making $(VENV) with $$python" && "$$python" -m venv --clear $(VENV)

$(environment): requirements/$(DJANGO).txt | $(bin)/pip
	@echo "Installing the pinned requirements into $(VENV)"
	@$(bin)/pip install -qq --require-hashes -r $<
	@touch $@

$(VENV)/installed-docs: requirements/docs.txt | $(environment)
	@$(bin)/pip install -qq --require-hashes -r $<
	@touch $@

tests/sdk/node_modules/.package-lock.json: tests/sdk/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: apt-get install nodejs npm" >&2; exit 1; }
	@echo "Installing the JavaScript SDK for tests/sdk"
	@cd tests/sdk && npm ci --loglevel=error --no-audit --no-fund --no-update-notifier >/dev/null
	@touch $@
