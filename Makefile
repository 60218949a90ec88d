# Each target does its own set-up in .venv: the ranges of requirements/*.txt, held to the tested set in constraints.txt.
# A stamp is written when a step of the set-up is complete, so an interrupted one is taken up again.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
ARGS ?=

comma := ,

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL = $(PIP) install $(if $(wildcard $@),--quiet) -c $(CONSTRAINTS)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
RUNTIME := $(VENV)/.stamp-runtime
DEPLOY := $(VENV)/.stamp-deploy
TESTS := $(VENV)/.stamp-tests
ENGINES := $(VENV)/.stamp-engines
SUPPLY := $(VENV)/supply
LOCKED := requirements/locked.txt

# Archives of one commit are equal to the byte wherever they are built.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)

# The tested set needs a newer Python than the package does.
OLDEST_PYTHON := 3.$(if $(filter constraints.txt,$(CONSTRAINTS)),11,10)

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
test: lint types pytest ## install, then run every check: lint, types and the tests

.PHONY: pytest
pytest: $(TESTS) ## run the tests alone
	$(PYTEST) -m 'not slow' $(ARGS)

.PHONY: test-slow
test-slow: $(TESTS) ## run the long test matrices
	$(PYTEST) -m slow $(ARGS)

.PHONY: stress
stress: $(TESTS) ## damage files, kill trainings, make disks fail (docs/reliability.md)
	$(BIN)/python benchmarks/stress $(ARGS)

.PHONY: engines
engines: setup-engines ## run every target's files in their own engines: what docs/results/engines.md lacks of its table
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/engines.py $(ARGS)

.PHONY: coverage
coverage: $(TESTS) ## run the tests and report the share of lines and branches that they cover, by file
	$(PYTEST) -m 'not slow' --timeout 900 --cov --cov-report=term:skip-covered --cov-report=html $(ARGS)

.PHONY: docs
docs: $(TESTS) ## build the documentation into docs/_build/html; a warning is an error
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -n -W --keep-going docs docs/_build/html $(ARGS)

.PHONY: lint
lint: $(TESTS) ## check style, format and faults of security
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive lbitcls tools benchmarks demo docs setup.py

.PHONY: types
types: $(TESTS) ## check types
	$(BIN)/mypy -n 2

.PHONY: wheel
wheel: $(RUNTIME) ## build the wheel into dist/
	rm -rf build dist
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: sdist
sdist: $(RUNTIME) ## build the source archive into dist/
	$(BIN)/python -c 'import setuptools.build_meta as backend; backend.build_sdist("dist")'

.PHONY: sbom
sbom: $(SUPPLY)/.stamp ## write the bill of materials, dist/lbitcls.cdx.json (CycloneDX), of what requirements/locked.txt pins
	mkdir -p dist
	$(SUPPLY)/bin/cyclonedx-py requirements --output-reproducible --output-format JSON \
	  --output-file dist/lbitcls.cdx.json $(LOCKED)

.PHONY: audit
audit: $(SUPPLY)/.stamp ## search the online database of vulnerabilities for what requirements/locked.txt pins
	$(SUPPLY)/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r $(LOCKED) $(ARGS)

.PHONY: locked
locked: $(SUPPLY)/.stamp ## renew requirements/locked.txt: what training and export need, pinned with hashes
	{ sed '/^[^#]/,$$d' $(LOCKED); $(SUPPLY)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate -c constraints.txt requirements/runtime.txt requirements/deploy.txt; \
	} > locked.new
	mv locked.new $(LOCKED)

.PHONY: release
release: check-tag wheel ## attach the wheel to a GitHub release of the version's tag: make release TAG=v0.1.0
	awk -v version="$$(cat lbitcls/VERSION)" '/^## / {shown = $$2 == version} shown' CHANGELOG.md \
	  | gh release create "$$TAG" dist/*.whl --verify-tag --title "lbitcls $$TAG" --notes-file -

.PHONY: check-tag
check-tag: ## fail unless TAG is the tag of the version: v and lbitcls/VERSION
	@test "$$TAG" = "v$$(cat lbitcls/VERSION)" || \
	  { echo "The tag of version $$(cat lbitcls/VERSION) is v$$(cat lbitcls/VERSION); got TAG='$$TAG'." >&2; exit 1; }

.PHONY: layout
layout: $(TESTS) ## write the package's layout into docs/design.md, from the modules' docstrings
	$(BIN)/python docs/layout.py --write

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

.PHONY: install
install: $(DEPLOY) ## only install what training and export need

.PHONY: setup
setup: $(TESTS) ## only install, the runtime and what the tests need

.PHONY: setup-engines
setup-engines: $(ENGINES) ## only install the engines of all targets: packages, the browser's runtime (npm), Chromium (as root)
	@$(BIN)/python -c 'from lbitcls.deploy.runtime.page import npm; \
	  print("" if npm.archive().is_file() else npm.install_command())' | sh >/dev/null || \
	  echo "The runtime for pages could not be fetched; their tests are skipped." >&2
	@command -v chromedriver >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends chromium chromium-driver; } >/dev/null || \
	  echo "Chromium is not here and was not installed; its tests are skipped." >&2

$(VENV)/.stamp-venv:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "$(PYTHON) is not here. Install Python $(OLDEST_PYTHON) or newer: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < ($(subst .,$(comma) ,$(OLDEST_PYTHON))))' || \
	  { echo "$(PYTHON) is older than $(OLDEST_PYTHON), as the tested versions need. Name a newer one: make PYTHON=python$(OLDEST_PYTHON) $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments. Install the package: apt-get install python3-venv" >&2; exit 1; }
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(SUPPLY)/.stamp: requirements/supply.txt | $(VENV)/.stamp-venv
	$(BIN)/python -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip --disable-pip-version-check install --quiet -r requirements/supply.txt
	@touch $@

$(RUNTIME): $(wildcard requirements/*.txt) $(CONSTRAINTS) pyproject.toml setup.py lbitcls/VERSION | $(VENV)/.stamp-venv
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

# executorch asks for much that neither exporting for XNNPACK nor running needs; ruamel.yaml and tabulate it does.
$(ENGINES): $(TESTS)
	$(INSTALL) -r requirements/engines.txt -r requirements/litert.txt -r requirements/qonnx.txt -r requirements/web.txt
	$(INSTALL) --no-deps -r requirements/executorch.txt torchao
	$(INSTALL) ruamel.yaml tabulate
	@touch $@
