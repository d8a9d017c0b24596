# Each target sets up what it needs. PYTHON names the interpreter that the environment is made with.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SUITE ?= all
# Chaos tests that would begin later are skipped, and say so.
CHAOS_MINUTES ?= 60
STAMP = $(VENV)/.medray-installed

.PHONY: setup run test check bench chaos clean

setup: $(STAMP)

# torch first and alone: a looser request would bring a build with several GB of CUDA.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

run: setup
	$(BIN)/medray local pggan --config jobs/configs/quickstart.yaml --run-dir runs/quickstart --resume

test: setup
	$(BIN)/python -m pytest -m "not chaos and not gpu and not browser" -q

chaos: setup
	CHAOS_MINUTES=$(CHAOS_MINUTES) $(BIN)/python -m pytest -m "chaos and not gpu" -q

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: setup
	$(BIN)/python jobs/bench.py --suite $(SUITE)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
