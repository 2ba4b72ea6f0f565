# Everything runs in .venv, which the first target that needs it makes. Wanted beforehand: make, and
# Python 3.11, 3.12 or 3.13 (`make PYTHON=/path/to/python3.12 venv` where the search below finds none).

SUITABLE := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUITABLE)' >/dev/null 2>&1 && { echo $$python; break; }; done)
endif

BIN := .venv/bin
STAMP := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint bench recipe

help: ## show this list
	@awk -F ': ## ' '/^[a-z]+: ## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

venv: ## make .venv with holdfast and its tools (PIP_ARGS="..." is handed to pip)
venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@'$(PYTHON)' -c '$(SUITABLE)' || { echo "holdfast needs Python 3.11, 3.12 or 3.13;" \
		"found: '$(PYTHON)' $$('$(PYTHON)' --version 2>&1). Name one: make PYTHON=/path/to/python3.12"; exit 1; }
	'$(PYTHON)' -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt $(PIP_ARGS) -e '.[all,test,dev]'
	@touch $@

demo: ## forget and remember five tasks of handwritten digits, in a minute (ARGS="...")
demo: $(STAMP)
	$(BIN)/holdfast demo $(ARGS)

# One thread to a test process: two processes of two threads each would fight for two cores. Each begins with one half
# of the tests, file after file, and takes over half of what the other has left when it is done: what the tests of a file
# share is made once.
test: ## the tests that are quick and need no network (ARGS="-k ewc", ARGS="-m slow", ...)
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: ## ruff, pyright, and the contracts of the layers
lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports

recipe: ## a published experiment (NAME=curve, ARGS="--quick"; NAME=--list shows them)
recipe: $(STAMP)
	$(BIN)/python -m recipes $(NAME) $(ARGS)

bench: ## time and memory of everything, beside the usual ways (ARGS="importance --workloads gpt-128", "--quick")
bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)
