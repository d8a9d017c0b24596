# Each target sets up what it needs. PYTHON names the interpreter that the environment is made with.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SUITE ?= all
# Files of tests side by side.
TEST_WORKERS ?= 2
# Chaos tests that would begin later are skipped, and say so.
CHAOS_MINUTES ?= 60
CHAOS_RESULTS ?= $(CURDIR)/runs/chaos
STAMP = $(VENV)/.medray-installed

.PHONY: setup run test browser check bench chaos chaos-long clean models models-all studies

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
	$(BIN)/python -m pytest -m "not chaos and not gpu and not browser" -q \
	  -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

# The page in headless Chromium (Debian's package); without it these tests skip and say so.
browser: setup
	$(BIN)/python -m pytest -m "browser and not chaos" -q

# Reduced numbers of the table of faults (tests/reliability.yaml), as many as the time allows.
chaos: setup
	mkdir -p $(CHAOS_RESULTS)
	CHAOS_MINUTES=$(CHAOS_MINUTES) MEDRAY_OUTCOMES=$(CHAOS_RESULTS)/outcomes-short.jsonl \
	  $(BIN)/python -m pytest -m "chaos and not gpu" -q

# The whole table, hours; run again it goes on after what has passed with this code.
chaos-long: setup
	mkdir -p $(CHAOS_RESULTS)
	CHAOS_TRIALS=full CHAOS_RESULTS=$(CHAOS_RESULTS) \
	  MEDRAY_OUTCOMES=$(CHAOS_RESULTS)/outcomes-full.jsonl \
	  $(BIN)/python -m pytest -m "chaos and not gpu" -q --timeout 7200
	$(BIN)/python -m tests.reliability $(CHAOS_RESULTS)/outcomes-full.jsonl

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: setup
	$(BIN)/python jobs/bench.py --suite $(SUITE)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# --- make models: every trained model that later stages need ------------------------------------
# Each is a run folder of its own. It goes on where it was stopped; what is finished is left alone:
# DONE, index.json and latents.json are written last.

# Where the tars of images are, where sets and models go, how many are made at once.
DATA ?= ../shared/data
SETS ?= data
MODELS ?= runs/models
AT_ONCE ?= 2
# More flags for each kind, such as GENERATOR_FLAGS="--total-images 1000" for a trial.
GENERATOR_FLAGS ?=
CLASSIFIER_FLAGS ?=
LATENTS_FLAGS ?=

CONFIGS = jobs/configs
TRAIN = --backend local --threads-per-worker 1 --resume
CHEST_CLASSES = normal,bacteria,virus
BRAIN_CLASSES = no_tumor,tumor

models: setup
	$(MAKE) -j$(AT_ONCE) models-all

# 1: models' name, 2: tar, 3: set, 4: labels for the latents
define MODEL_RULES
models-all: $(MODELS)/$(1)-latents/latents.json

$(SETS)/$(3)/index.json:
	mkdir -p $(SETS)/source
	tar -xf $(DATA)/$(2).tar -C $(SETS)/source
	$(BIN)/medray pack --source $(SETS)/source/$(2)/labels.csv --size-px 64 --out $$(@D)
	rm -r $(SETS)/source/$(2)

$(MODELS)/$(1)-generator/DONE: | $(SETS)/$(3)/index.json
	$(BIN)/medray pggan --config $(CONFIGS)/cpu-64.yaml --data $(SETS)/$(3) \
	  --run-dir $$(@D) $(TRAIN) $(GENERATOR_FLAGS)

$(MODELS)/$(1)-classifier/DONE: | $(SETS)/$(3)/index.json
	$(BIN)/medray classify --config $(CONFIGS)/classifier-64.yaml --data $(SETS)/$(3) \
	  --run-dir $$(@D) $(TRAIN) $(CLASSIFIER_FLAGS)

$(MODELS)/$(1)-judge/DONE: | $(SETS)/$(3)/index.json
	$(BIN)/medray classify --config $(CONFIGS)/judge-64.yaml --data $(SETS)/$(3) \
	  --run-dir $$(@D) $(TRAIN) $(CLASSIFIER_FLAGS)

$(MODELS)/$(1)-latents/latents.json: | $(MODELS)/$(1)-generator/DONE \
  $(MODELS)/$(1)-classifier/DONE $(MODELS)/$(1)-judge/DONE
	$(BIN)/medray latents --generator $(MODELS)/$(1)-generator \
	  --classifier $(MODELS)/$(1)-classifier --judge $(MODELS)/$(1)-judge \
	  --classes $(4) --real $(SETS)/$(3) --out $$(@D) $(LATENTS_FLAGS)
endef

$(eval $(call MODEL_RULES,chest,chest_pneumonia_kermany,chest64,$(CHEST_CLASSES)))
$(eval $(call MODEL_RULES,brain,brain_lgg_flair,lgg64,$(BRAIN_CLASSES)))

# --- make studies: from the published sets to tables, hours on 2 cores; goes on where it stopped ---

STUDIES ?= brain-grade lung-signs brain-classes chest mr-clips gradcam
STUDY_FLAGS ?=

studies: setup
	for name in $(STUDIES); do \
	  $(BIN)/medray study $$name --sets $(DATA) --at-once $(AT_ONCE) $(STUDY_FLAGS) || exit $$?; \
	done
