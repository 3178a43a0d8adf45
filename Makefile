# Verbs of this project. `make quickstart` and `make test` set everything up by themselves, in either order.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Photographs that installed packages ship are used where no folder is given.
IMAGES ?= $(shell $(BIN)/python -c "import pathlib, skimage, sklearn; print(pathlib.Path(skimage.__file__).parent / 'data', pathlib.Path(sklearn.__file__).parent / 'datasets/images')" 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help install quickstart bench-serve test test-slow lint clean

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(STAMP)  ## virtual environment in .venv with everything pinned

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,cpu,parquet,eval,serve,dev]'
	touch $@

quickstart: $(STAMP)  ## build mae-tiny, embed photographs (IMAGES=folder for your own), show nearest neighbours
	$(BIN)/mimexport build --model mae-tiny --agg topk
	$(BIN)/mimexport embed artifacts/mae-tiny-topk $(IMAGES) --out artifacts/vectors.parquet
	$(BIN)/python examples/neighbours.py artifacts/vectors.parquet

ARTIFACT ?= artifacts/mae-tiny-topk
bench-serve: $(STAMP)  ## the service: throughput, p50 and p99 against load, as table and plot (ARTIFACT=folder)
	test -d $(ARTIFACT) || $(BIN)/mimexport build --model mae-tiny --agg topk --out $(ARTIFACT)
	$(BIN)/python examples/bench_service.py $(ARTIFACT) reports/serve $(IMAGES)

test: $(STAMP) lint  ## linters, types, import contracts, the whole suite with coverage
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

test-slow: $(STAMP)  ## what takes minutes: every backbone class with every aggregator, at full depth once
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove the environment and what was built
	rm -rf $(VENV) artifacts reports .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
