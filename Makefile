# `make serve` and `make test` do all the set-up themselves, in .venv.

PYTHON ?= python3
BIN := .venv/bin

# Two at a time, because half of the work is waiting for one thread of a framework; a file's tests share what is slow.
PARALLEL := --numprocesses 2 --dist loadfile
ALL := -m "not training" $(PARALLEL)
FAST := -m "not slow" $(PARALLEL)

.PHONY: serve test test-fast test-training lint check coverage docs tables image

serve: .venv/serve
	@$(BIN)/menagerie serve

test: .venv/test
	$(BIN)/pytest $(ALL)

test-fast: .venv/test
	$(BIN)/pytest $(FAST)

test-training: .venv/test
	$(BIN)/pytest -m training

lint: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

coverage: .venv/test
	$(BIN)/pytest $(FAST) --cov --cov-report term --cov-report html

docs: .venv/docs
	$(BIN)/zensical build --clean --strict

# Writes the tables of docs/reference that follow from the code.
tables: .venv/test
	$(BIN)/python -m tests.tables

image:
	docker build --target full --tag menagerie:full .
	docker build --target lean --tag menagerie:lean .

.venv/serve: pyproject.toml constraints.txt
	@echo "Installing PyTorch, TensorFlow and ONNX Runtime into .venv: some minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[torch,keras]'
	@touch $@

.venv/test: .venv/serve
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[torch,keras,dev]'
	@touch $@

.venv/docs: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@
