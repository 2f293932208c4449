# `make demo` and `make test` set up a virtual environment of their own and need nothing else.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo test check clean

demo: $(STAMP)
	HF_HUB_OFFLINE=1 $(VENV)/bin/focus-rag demo

test: check
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist loadfile

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/mypy

# torch is pinned here because an unpinned install pulls gigabytes of CUDA libraries on Linux.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet -e '.[langchain,llama-index,eval,serve,structured,test]'
	touch $(STAMP)

clean:
	rm -rf $(VENV)
