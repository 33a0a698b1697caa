# `make help` lists the targets. PYTHON is the interpreter for the virtual environment.
PYTHON ?= python3
BIN := .venv/bin
GENERATED := docs/command-line.md docs/own-network.md docs/python-api.md docs/study-files.md  # cog generates parts of these

.DEFAULT_GOAL := help
.PHONY: help install dev data run test chaos check docs docker-check docker-test format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1/p' $(MAKEFILE_LIST) | awk '{ name = $$1; $$1 = ""; printf "  make %-14s%s\n", name, $$0 }'

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version); Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 14))' || \
		echo "Warning: $$($(PYTHON) --version) is not tested with fmnist-search; if something fails, use Python 3.11 to 3.13."
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/made pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: .venv/installed  ## create .venv and install fmnist-search into it

dev: .venv/dev  ## the same, plus the dependencies of tests and checks

data: .venv/installed  ## find, download or install the data set, and verify it
	@$(BIN)/fmnist-search data || { test $$? = 3 && command -v apt-get > /dev/null && \
		echo "Installing Debian's data set package." && \
		$$(test $$(id -u) = 0 || echo sudo) apt-get update -qq && \
		$$(test $$(id -u) = 0 || echo sudo) apt-get install -y -qq dataset-fashion-mnist && \
		$(BIN)/fmnist-search data; }

run: data  ## run a search: 50 trials and the finalists on Fashion-MNIST, about 20 minutes on two recent cores
	$(BIN)/fmnist-search run --trials 50

test: dev data  ## run the whole test suite
	$(BIN)/pytest --numprocesses 2 --dist worksteal

chaos: dev  ## kill workers 200 times, with SIGKILL and SIGTERM, on SQLite and PostgreSQL: about 15 minutes
	$(BIN)/pytest tests/test_faults.py -k test_chaos --kills 200 -s

check: dev docker-check docs  ## check lint, types, links of the documents, and that their generated parts are up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/cog --check $(GENERATED)

docs: dev  ## build the documents as a site, build/docs/index.html; warnings are errors
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going docs build/docs

docker-check: dev  ## lint the Dockerfile, and validate the compose files
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml docker/compose.gpu.yaml

docker-test: dev  ## build the image and run the whole service, with Docker or podman: half an hour and 20 GB
	$(BIN)/python docker/test.py

format: dev  ## format the code and update the generated parts of the documents
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/cog -r $(GENERATED)

clean:  ## remove the virtual environment and caches, but no studies
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
