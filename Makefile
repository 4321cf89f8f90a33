# Two commands for a new user: `make demo` and `make test`. Each sets up .venv first, once per lock.
# PYTHON=…   the interpreter to build .venv with (default: the first of python3, python3.13 … that is >= 3.11)
# PROMPT="…" for `make demo`: answer once and exit
# TESTS="…"  for `make test-all` and `make test-unit`: paths or options for pytest

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit test-all test-interpreted test-gpu lint format types bench lock clean

VENV_PYTHON := .venv/bin/python
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11)
TESTS ?= tests
# GPU code on the CPU, in Triton's interpreter, and beside transformers: minutes, two at a time.
INTERPRETED := tests/kernels/gpu tests/shared/engine/gpu tests/shared/engine/foreign
APART := $(addprefix --ignore=,$(INTERPRETED))

# More runnable threads than cores cost a small model 4 to 10 times its speed (docs/decisions.md).
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
export PYTHONUNBUFFERED := 1

help:
	@echo "make demo [PROMPT=...]   start everything here, stream a story, then chat"
	@echo "make test                lint, types and every test"
	@echo "make test-unit           the tests that need no server"
	@echo "make test-gpu            the kernels' tests on this machine's GPU"
	@echo "make bench               measure this machine; results in bench/results/"
	@echo "make lint types format   one tool each"
	@echo "make lock                resolve requirements/ again from pyproject.toml"
	@echo "make clean               remove .venv, caches and the demo's data"

setup:
	@for python in $(CANDIDATES); do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then exec "$$python" stack/install.py; fi; \
	done; \
	echo "outrider: needs Python >= 3.11 with venv (tried: $(CANDIDATES)); set PYTHON=/path/to/python" >&2; \
	exit 2

demo: setup
	@STACK_DEMO_PROMPT="$(if $(filter command,$(origin PROMPT)),$$PROMPT)" \
	  exec $(VENV_PYTHON) -m stack.demo

test: lint types test-interpreted test-all

test-all: setup
	$(VENV_PYTHON) -m pytest -q $(APART) -m "not gpu" $(TESTS)

test-interpreted: setup
	$(VENV_PYTHON) -m pytest -q -n 2 --dist loadfile -m "not gpu" $(INTERPRETED)

test-unit: setup
	$(VENV_PYTHON) -m pytest -q -n 2 --dist loadfile $(APART) \
	  -m "not server and not e2e and not slow and not gpu" $(TESTS)

# With the interpreter that has torch for this GPU; no virtual environment is made. `JOBS=8`, with
# pytest-xdist, compiles that many kernels at once.
test-gpu:
	TRITON_INTERPRET=0 $(or $(PYTHON),python3) -m pytest -q $(if $(JOBS),-n $(JOBS) --dist worksteal) \
	  $(INTERPRETED)

lint: setup
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

format: setup
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

types: setup
	$(VENV_PYTHON) -m mypy

bench: setup
	$(VENV_PYTHON) -m bench

# Universal: one lock for every platform. Torch stays out; its own needs are in the worker group.
UV_COMPILE = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --quiet --no-emit-package torch

lock:
	@command -v uv >/dev/null || { echo "outrider: make lock needs uv on the PATH" >&2; exit 2; }
	$(UV_COMPILE) --group gateway --group worker --group stack --group test --group bench \
	  -o requirements/all.txt
	$(UV_COMPILE) --group gateway --constraint requirements/all.txt -o requirements/gateway.txt
	$(UV_COMPILE) --group worker --constraint requirements/all.txt -o requirements/worker.txt
	echo triton==3.6.0 | uv pip compile - --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --quiet --no-deps -o requirements/triton.txt

clean:
	rm -rf .venv .outrider .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
