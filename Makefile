# The contributor's manual: every task is one target. Nothing but Python 3.11–3.13 and make is needed to start.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FAISS  ?= cpu

.PHONY: help setup demo lab test test-heavy check clean pocket

help:            ## these lines
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

setup: $(VENV)/.ready  ## make .venv and install the workbench with its tests (FAISS=gpu for faiss-gpu)

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(FAISS),test]"
	touch $@

demo: setup      ## index corpora/, answer, draw the experts, summarize, write demo-report/report.html
	$(BIN)/workbench demo --out demo-report

lab: setup       ## JupyterLab on notebooks/
	$(BIN)/workbench lab

test: setup      ## unit tests, doctests, notebooks, one test of each heavy tier
	$(BIN)/python -m pytest -m "not (browser or kill or hostile) or smoke"

test-heavy: setup  ## browser, kill and hostile-input tests
	$(BIN)/python -m pytest -n0 -m "browser or kill or hostile"

check: setup     ## lint, types, stripped notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify notebooks/*.ipynb

pocket: setup    ## train the pocket model anew (five hours on two cores; goes on where it was stopped)
	$(BIN)/python -m workbench.pocket.train --out build/pocket --weights build/pocket/weights --workers 2

clean:           ## remove what the targets above made
	rm -rf $(VENV) demo-report .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
