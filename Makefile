# make run     install into .venv, execute every notebook       PRESET=smoke DATA=file NAME=name CORES=2
# make test    install into .venv, run all tests
# make lint    style of code and notebooks
# make lab     install into .venv, open JupyterLab
# make clean   remove .venv and caches; results under runs/ stay
#
# TORCH_INDEX=<url> names a package index with other builds of torch, for example without CUDA.

PRESET ?= tiny
VENV := .venv
STAMP := $(VENV)/.installed

# Everything below ends when this make does, also when it is killed.
export USP_LAB_MAKE_PID := $(shell echo $$PPID)
export TORCH_INDEX

.PHONY: run test lint lab clean

run: $(STAMP)
	@$(VENV)/bin/usp-lab run all --preset '$(PRESET)' $(if $(DATA),--data '$(DATA)') $(if $(NAME),--name '$(NAME)') $(if $(CORES),--cores '$(CORES)')

test: $(STAMP)
	@$(VENV)/bin/python -m pytest

lint: $(STAMP)
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check

lab: $(STAMP)
	@$(VENV)/bin/jupyter lab --notebook-dir=notebooks

clean:
	rm -rf $(VENV) $(VENV).lock .snakemake .pytest_cache .ruff_cache .hypothesis *.egg-info usp_lab/__pycache__ tests/__pycache__

$(STAMP): pyproject.toml constraints.txt
	@for python in $(or $(PYTHON),python3.11 python3 python); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
	    exec "$$python" .ci/install.py $(VENV) $(STAMP); \
	  fi; \
	done; \
	echo "make: $(or $(PYTHON),python3.11 (nor python3, nor python)) is not Python 3.11; install it or name it, make PYTHON=path" >&2; \
	exit 2
