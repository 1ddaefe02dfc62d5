# make demo | nuclei | test | test-slow | lint | clean. Each makes the environment .venv first, once.
#
#   make nuclei DATA=FOLDER              the data set of docs/nuclei.md, in the COCO panoptic format
#   make nuclei DATA=FOLDER OVERRIDE='training { steps: 100 }'   a field of its experiment
#   make test PYTHON=python3.12          another Python (3.9 to 3.13; it decides which TensorFlow is installed)
#   make test VENV=.venv312              another place for the environment
#   make test TESTS="tests/losses -x"    other arguments for pytest
#   make test JOBS=1                     number of test processes (1 to 2 GB each); without it 2

PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests
JOBS ?= 2

SHELL := bash
BIN := $(VENV)/bin
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
STACK_3.9 := tf2.15
STACK_3.10 := tf2.15
STACK_3.11 := tf2.15
STACK_3.12 := tf2.20
STACK_3.13 := tf2.20
STACK := $(STACK_$(PYTHON_VERSION))
CONSTRAINTS := .ci/constraints-$(STACK).txt
READY := $(VENV)/.ready-$(PYTHON_VERSION)

.PHONY: demo nuclei test test-slow lint clean python_is_supported

demo: $(READY)
	@echo "==> demo: draws a data set, trains on it, evaluates, exports, predicts"
	@$(BIN)/python -m maxdl_tf.demo

# Each command is printed and can be typed by hand. After an interruption, the training resumes.
nuclei: OUT := nuclei_output
nuclei: export NUCLEI_TFRECORDS := $(OUT)/tfrecords
nuclei: export PATH := $(abspath $(BIN)):$(PATH)
nuclei: MODEL = --config_file configs/nuclei/max_deeplab_tiny_129.textproto \
    $(if $(OVERRIDE),--override '$(subst ','\'',$(OVERRIDE))')
nuclei: $(READY)
	@if [ ! -d "$(DATA)/train" ]; then \
	    echo "make: DATA is '$(DATA)', where there is no folder train; give the folder that docs/nuclei.md describes:" \
	        "make nuclei DATA=FOLDER" >&2; exit 2; fi
	@echo "==> nuclei: checks and converts the data, trains, evaluates, exports, predicts; the training takes about half an hour"
	maxdl-check-data coco_panoptic --image_dir "$(DATA)/train" --annotation_file "$(DATA)/annotations/panoptic_train.json" \
	    --image_dir "$(DATA)/val" --annotation_file "$(DATA)/annotations/panoptic_val.json"
	maxdl-convert coco_panoptic --image_dir "$(DATA)/train" --annotation_file "$(DATA)/annotations/panoptic_train.json" \
	    --output_dir $(OUT)/tfrecords --split train --overwrite
	maxdl-convert coco_panoptic --image_dir "$(DATA)/val" --annotation_file "$(DATA)/annotations/panoptic_val.json" \
	    --output_dir $(OUT)/tfrecords --split val --overwrite
	maxdl-train $(MODEL) --mode train_and_eval --model_dir $(OUT)/model
	maxdl-eval $(MODEL) --checkpoint $(OUT)/model --report $(OUT)/report.html --pictures $(OUT)/pictures
	rm -rf $(OUT)/export
	maxdl-export $(MODEL) --checkpoint $(OUT)/model --export_dir $(OUT)/export/1
	maxdl-predict --model $(OUT)/export --input "$(DATA)/val" --output $(OUT)/predictions --overwrite

test: $(READY)
	@echo "==> tests on TensorFlow $(STACK:tf%=%), Python $(PYTHON_VERSION)"
	@$(BIN)/python -m pytest -m "not slow" -ra --durations=10 \
	    --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-slow: $(READY)
	@echo "==> slow tests on TensorFlow $(STACK:tf%=%), Python $(PYTHON_VERSION)"
	@$(BIN)/python -m pytest -m slow -ra --durations=10 $(TESTS)

lint: $(READY)
	@echo "==> lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell maxdl_tf data_gen protos configs docs tests .ci *.md *.py *.toml Makefile BUILD
	@$(BIN)/python .ci/check_phrases.py

clean:
	@echo "==> removing environments, generated files and what the demo made"
	@rm -rf .venv* build dist *.egg-info maxdl_tf/protos/*_pb2.py demo_output nuclei_output .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The package is installed in place, so that only a change of requirements or protos asks for a new install.
$(READY): setup.py pyproject.toml $(wildcard $(CONSTRAINTS)) $(wildcard protos/*.proto) | python_is_supported
	@echo "==> $(VENV): Python $(PYTHON_VERSION), TensorFlow $(STACK:tf%=%) and what goes with it; some minutes, once"
	@if [ ! -e $(READY) ]; then $(PYTHON) -m venv --clear $(VENV); fi
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --no-compile --prefer-binary \
	    --constraint $(CONSTRAINTS) --editable '.[dev]' 2>&1 | tee $(VENV)/install.log \
	    | awk '/Downloading .*[0-9][0-9]\.[0-9] MB/ { split($$2, name, "-"); print "    downloading " name[1], name[2], $$3, $$4 } \
	           /^Installing collected/ { print "    unpacking " NF - 3 " packages" } \
	           /^ERROR|^error/ { print "    " $$0 } { fflush() }' \
	    || { echo "make: the install failed; all that pip said is in $(VENV)/install.log" >&2; exit 1; }
	@touch $@

python_is_supported:
	@if [ -z "$(STACK)" ]; then \
	    echo "make: $(PYTHON) is $(if $(PYTHON_VERSION),Python $(PYTHON_VERSION),not a Python that runs);" \
	        "wanted Python 3.9 to 3.13, for instance: make $(or $(firstword $(MAKECMDGOALS)),demo) PYTHON=python3.11" >&2; \
	    exit 2; \
	fi
