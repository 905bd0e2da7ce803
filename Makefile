# Each target sets itself up on a machine with Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/quickstart

# glibc would hand every freed tensor back to the system and fetch it anew at the next step; on virtual
# machines that costs more than the computation.
export MALLOC_MMAP_THRESHOLD_ = 8589934592
export MALLOC_TRIM_THRESHOLD_ = 17179869184

.PHONY: quickstart test bench study lint
.DEFAULT_GOAL := test

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	touch $@

# Train a sparse network on the embedded world, label its units, judge the labels, explain eight images.
quickstart: .venv/installed
	test -f $(RUN)/trained || { \
	  if test -f $(RUN)/checkpoints/last.ckpt; then \
	    $(BIN)/python train.py fit --config $(RUN)/config.yaml --run $(RUN) --ckpt_path $(RUN)/checkpoints/last.ckpt; \
	  else $(BIN)/python train.py fit --config configs/train/quickstart.yaml --run $(RUN); fi && touch $(RUN)/trained; }
	$(BIN)/python dissect.py label --run $(RUN) --probe 'validation[:3000]' --prior 0.75
	$(BIN)/python dissect.py evaluate --run $(RUN)
	$(BIN)/python dissect.py report --run $(RUN)

# Tests of one file stay together as far as can be, for what they share is made once by each process.
test: .venv/installed
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# Times into benchmarks/results/speed.md, half an hour with nothing else running; PUBLISHED=CLONE, of
# github.com/konpanousis/DISCOVER, compares with the published layer.
bench: .venv/installed
	$(BIN)/python -m benchmarks.speed run $(if $(PUBLISHED),--published $(PUBLISHED))

# Everything docs/study.md says; CIFAR10=FOLDER for its photographs. By its rows six hours of training, two runs at a
# time, with labelling after it. What has a row is not done again.
study: .venv/installed
	$(BIN)/python -m benchmarks.accuracy fit benchmarks/labels/embedded.yaml . --jobs 2
	$(BIN)/python -m benchmarks.labels measure benchmarks/labels/embedded.yaml .
	$(BIN)/python -m benchmarks.labels table benchmarks/labels/embedded.yaml
	test -z "$(CIFAR10)" || { \
	  $(BIN)/python -m benchmarks.accuracy fit benchmarks/labels/cifar10.yaml "$(CIFAR10)" --jobs 2 && \
	  $(BIN)/python -m benchmarks.labels measure benchmarks/labels/cifar10.yaml "$(CIFAR10)" && \
	  $(BIN)/python -m benchmarks.labels table benchmarks/labels/cifar10.yaml; }

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
