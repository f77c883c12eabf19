# Everything runs in .venv, which is made and filled when it is missing or outdated.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# forwarding is tested on each of these that is found.
OTHER_PYTHONS := 3.11 3.12 3.13 3.14
# Its pages, but for the one that wraps a module of torch.
PAGES := tutorial/first-wrapper explanation/how-forwarding-works how-to/rename-and-nest \
         how-to/forward-a-whole-interface how-to/make-a-transparent-proxy how-to/test-any-wrapper \
         how-to/find-a-target-at-each-access how-to/convert-and-combine how-to/cover-a-target \
         how-to/tell-type-checkers how-to/wrap-a-class-whose-init-writes
PROCESSES := -n auto --maxprocesses 8
# No statistics, no processes that train together, no frameworks, no pages.
QUICK := forwarding dp tests --ignore=tests/dp/distributed --ignore=tests/dp/integrations
# Else each of many processes compiles everything for itself, where that is set.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo demo-distributed quick test test-all test-newest lint docs bench clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

demo: $(VENV)/demo-is-ready ## Train on real MNIST with and without privacy; fills report/.
	$(BIN)/python -m dp train --compare

demo-distributed: $(VENV)/demo-is-ready ## Train the same on two processes at once.
	OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node=2 -m dp train --compare

quick: $(VENV)/test-is-ready ## Run the tests that are over in two minutes on two cores.
	$(BIN)/python -m pytest -q $(PROCESSES) -m "not statistical and not slow" $(QUICK)

test: $(VENV)/test-is-ready ## Run the whole test suite.
	$(BIN)/python -m pytest -q $(PROCESSES)

test-all: ## Run the tests and pages of forwarding on every CPython that is found.
	@set -e; for version in $(OTHER_PYTHONS); do \
	  for python in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version*/bin/python; do \
	    if "$$python" -c 'import sys, venv' 2>/dev/null; then \
	      echo "== CPython $$version"; \
	      "$$python" -m venv $(VENV)-$$version; \
	      $(VENV)-$$version/bin/pip install -q --disable-pip-version-check -U pip; \
	      $(VENV)-$$version/bin/pip install -q --disable-pip-version-check -e '.[testing]' --group other-pythons; \
	      $(VENV)-$$version/bin/python -m pytest -q forwarding tests/forwarding $(PAGES:%=docs/%.md); \
	      break; \
	    fi; \
	  done; \
	done

test-newest: $(VENV)/dev-is-ready ## Run them on a CPython for WASM, newer than those that are found.
	$(BIN)/python .ci/newest_python.py

lint: $(VENV)/dev-is-ready ## Run every static check.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright

docs: $(VENV)/dev-is-ready ## Build the documentation into docs/_build.
	$(BIN)/sphinx-build -q -n -W -b html docs docs/_build

bench: $(VENV)/dev-is-ready ## Measure speed, as ratios; takes minutes.
	for benchmark in tests/benchmarks/*_speed.py; do $(BIN)/python $$benchmark || exit 1; done

clean: ## Remove everything that was made.
	rm -rf $(VENV) $(VENV)-3.* dist docs/_build report .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

# torch comes first, at the version the project is tested with: the range would take more.
$(VENV)/torch-is-ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -U pip
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/demo-is-ready: pyproject.toml | $(VENV)/torch-is-ready
	$(PIP) -e '.[dp,demo]'
	@touch $@

$(VENV)/test-is-ready: pyproject.toml | $(VENV)/torch-is-ready
	$(PIP) -e '.[dp,demo,testing]' --group tests
	@touch $@

$(VENV)/dev-is-ready: pyproject.toml | $(VENV)/torch-is-ready
	$(PIP) -e '.[dp,demo,testing]' --group dev
	@touch $@
