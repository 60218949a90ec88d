# Each target does its own set-up in .venv: the ranges of requirements/*.txt, held to the tested set in constraints.txt.
# A stamp is written when a step of the set-up is complete, so an interrupted one is taken up again.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL = $(PIP) install $(if $(wildcard $@),--quiet) -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
RUNTIME := $(VENV)/.stamp-runtime
DEPLOY := $(VENV)/.stamp-deploy
TESTS := $(VENV)/.stamp-tests

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'ARGS is handed on: make test ARGS="-k transformer", make quickstart ARGS="--seed 1"'

.PHONY: quickstart
quickstart: $(DEPLOY) ## install, then train a 4-bit classifier of handwritten digits and export it
	$(BIN)/python tools/train.py configs/quickstart/digits_lsq_4w4f.py $(ARGS)

.PHONY: test
test: lint types ## install, then run every check: lint, types and the tests
	$(PYTEST) -m 'not slow' $(ARGS)

.PHONY: test-slow
test-slow: $(TESTS) ## run the long test matrices
	$(PYTEST) -m slow $(ARGS)

.PHONY: docs
docs: $(TESTS) ## build the documentation into docs/_build/html; a warning is an error
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -n -W --keep-going docs docs/_build/html $(ARGS)

.PHONY: lint
lint: $(TESTS) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(TESTS) ## check types
	$(BIN)/mypy

.PHONY: format
format: $(TESTS) ## format the code and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: hooks
hooks: $(TESTS) ## install the git hooks: the same checks before a commit and a push
	$(BIN)/pre-commit install --hook-type pre-commit --hook-type pre-push

.PHONY: constraints
constraints: $(TESTS) ## pin the versions that .venv holds now as the tested set
	{ sed '/^[^#]/,$$d' constraints.txt; $(PIP) freeze --all --exclude pip --exclude-editable; } > constraints.new
	mv constraints.new constraints.txt

.PHONY: clean
clean: ## remove caches and builds (not .venv, not work_dirs)
	rm -rf build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: setup
setup: $(TESTS) ## only install, the runtime and what the tests need

$(VENV)/.stamp-venv:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "$(PYTHON) is not here. Install Python 3.11 or newer: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11, as the tested versions need. Name a newer one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments. Install the package: apt-get install python3-venv" >&2; exit 1; }
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(RUNTIME): $(wildcard requirements/*.txt) constraints.txt setup.py lbitcls/VERSION | $(VENV)/.stamp-venv
	@echo "Setting up $(VENV): the first time about 5 GB with PyTorch, and a few minutes."
	$(INSTALL) -r requirements/build.txt -r requirements/runtime.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(DEPLOY): $(RUNTIME)
	$(INSTALL) -r requirements/deploy.txt
	@touch $@

$(TESTS): $(DEPLOY)
	$(INSTALL) -r requirements/tests.txt -r requirements/analysis.txt -r requirements/docs.txt -r requirements/mmcv.txt \
	  -r requirements/timm.txt
	@touch $@
