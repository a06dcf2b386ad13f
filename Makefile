# Every check of the project; each target also runs alone. The tools come with `./run.sh test` or `pip install -e .[test]`.
PYTHON ?= .venv/bin/python
BIN := $(dir $(PYTHON))

.PHONY: check format-check lint types imports test format

check: format-check lint types imports test

format-check:
	$(BIN)ruff format --check .

lint:
	$(BIN)ruff check .

types:
	$(PYTHON) -m mypy

imports:
	$(BIN)lint-imports

test:
	./run.sh test -m "not gpu"

format:
	$(BIN)ruff format .
	$(BIN)ruff check --fix .
