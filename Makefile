# `make` prints what there is to do.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup repro test smoke ui lint clean

VENV := .venv
STAMP := $(VENV)/.installed

# No tool of the pipeline reports home.
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

help: ## what each target does
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## create or update .venv from pyproject.toml and constraints.txt

repro: $(STAMP) ## regenerate every result that is not up to date
	@$(VENV)/bin/dvc repro
	@git rev-parse --quiet --verify HEAD >/dev/null || exit 0; \
	first=$$(git status --porcelain README.md reports | sed 's/^...//;q'); \
	if [ -z "$$first" ]; then echo "The results are the same bytes as the committed ones."; \
	else echo "The results differ from the committed ones, first in $$first (git diff shows how)."; fi

test: $(STAMP) ## run the tests
	@$(VENV)/bin/python -m pytest --numprocesses auto --dist loadgroup --no-loadscope-reorder

smoke: $(STAMP) ## run the whole pipeline at a tiny size, in a temporary folder
	@$(VENV)/bin/merit smoke

ui: $(STAMP) ## open MLflow on 127.0.0.1
	@$(VENV)/bin/merit ui

lint: $(STAMP) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove .venv and the tools' caches; results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# --- set-up -----------------------------------------------------------------------------------
# The stamp is written last and removed first: a failed or killed install leaves none, and the next
# make starts again from an empty .venv. With a stamp that is merely older than the two files, pip
# only brings what changed.

# Python 3.11 is what constraints.txt was tested with, so it is looked for first. A candidate needs
# pip: through ensurepip, or (Debian without python3-venv) its own.
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

define FIND_PYTHON
found=; without_pip=; \
for python in $(CANDIDATES); do \
  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
    without_pip="$$python"; \
    if $$python -c 'import venv, ensurepip' 2>/dev/null; then found="$$python"; break; fi; \
    if $$python -c 'import venv, pip' 2>/dev/null; then found="$$python"; break; fi; \
  fi; \
done; \
if [ -z "$$found" ] && [ -n "$$without_pip" ]; then \
  echo "make: $$without_pip has neither ensurepip nor pip, so it cannot fill a virtual environment." >&2; \
  echo "      Install them (Debian, Ubuntu: apt install python3-venv) and run make again." >&2; exit 1; \
elif [ -z "$$found" ]; then \
  echo "make: Python 3.11 or newer is needed; none of these is: $(strip $(CANDIDATES))" >&2; \
  echo "      Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
fi
endef

$(STAMP): pyproject.toml constraints.txt
	@if [ -f $(STAMP) ] && $(VENV)/bin/python -c '' 2>/dev/null; then \
	  echo "Updating $(VENV): $? changed."; \
	  rm -f $(STAMP); \
	else \
	  $(FIND_PYTHON); \
	  command -v cc >/dev/null || { echo "make: A C compiler is needed, which builds one of VLMEvalKit's dependencies." >&2; \
	    echo "      Install one (Debian, Ubuntu: apt install gcc python3-dev) and run make again." >&2; exit 1; }; \
	  echo "Installing torch (with its CUDA libraries), transformers, VLMEvalKit, DVC, MLflow and what"; \
	  echo "they need into $(VENV): about 7 GB on disk, 3 to 5 minutes. Nothing outside it changes."; \
	  rm -rf $(VENV); \
	  if $$found -c 'import ensurepip' 2>/dev/null; then $$found -m venv $(VENV); \
	  else $$found -m venv --without-pip $(VENV) && \
	    $$found -m pip --python $(VENV)/bin/python install --quiet pip; fi; \
	fi
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[repro,dev]'
	@touch $(STAMP)
	@echo "Installed."
