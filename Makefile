# make demo: install the locked dependencies and run the digits study.   make test: the tests.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
CORES ?= all
SEED ?= $(shell date +%s)

.PHONY: help install demo demo-pull test test-unit test-all lint fix raw-tiny graph docs clean
help:
	@sed -n 's/^## //p' Makefile

## make install    the locked dependencies, into .venv
install: $(BIN)/.installed
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "ipdiff needs Python 3.11 or later, found " + sys.version.split()[0] + "; use make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[pipeline,cluster,data,docs,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps clean-fid pytorch-fid torch-fidelity
	touch $@

## make demo       the digits study, from raw data to its report
demo: install
	snakemake --cores $(CORES)
	-@ipdiff verify --against HEAD --study digits | tail -n 2
	@echo "tables:  tables/digits/*/table.md"
	@echo "figures: figures/digits/*/figure.png"
	@echo "report:  report/digits/index.html"

## make demo-pull  clone HEAD, pull what published/store keeps (or from REMOTE_URL=...), verify, draw 64 images
demo-pull: install
	examples/demo_pull.sh

## make test       lint, types, contracts and all tests but the slow ones
test: lint test-unit
	pytest -q -n 2 --dist loadfile tests/workflow -m "not slow"

## make test-unit  unit, parity and integration tests alone, in random order (make test-unit SEED=... is that order again)
test-unit: install
	pytest -q -n 2 --random-order --random-order-seed=$(SEED) tests/unit tests/parity tests/integration -m "not slow"

## make test-all   the slow tests as well
test-all: install
	pytest -q tests -m slow

## make lint       formatting, lint, types, import contract, workflow lint, freshness of written files
lint: install
	ruff check .
	ruff format --check .
	pyright
	lint-imports
	git ls-files -z | xargs -0 codespell
	snakefmt --check workflow Snakefile
	snakemake --lint
	ipdiff grid --check
	python docs/rooms.py --check
	python docs/command_line.py --check

## make fix        what a program can mend: written files, format, lint
fix: graph
	snakefmt workflow Snakefile
	ruff check --fix --exit-zero .
	ruff format .

## make raw-tiny   archives in the published formats for the study paper-tiny, and a network like Inception
raw-tiny: install
	python tests/archives.py raw/tiny
	python tests/inception.py raw/tiny/inception.pt

## make graph      rewrite what is written from the studies and the code: dvc.yaml files, config/README.md, params.schema.json, docs
graph: install
	ipdiff grid --write
	python docs/rooms.py --write
	python docs/command_line.py --write

## make docs       the manual as pages for a browser, in work/manual; a broken link fails
docs: install
	python -m mkdocs build --strict

## make clean      drop artifacts and work in progress, keep .venv and DVC's cache
clean:
	rm -rf data features reference neighbours halves runs states samples metrics analysis tables figures report code work logs receipts
