# Each target sets itself up on a machine with Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
BIN := .venv/bin
DATA ?=
RUN ?= runs/quickstart

.PHONY: quickstart test lint
.DEFAULT_GOAL := test

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	touch $@

# make quickstart DATA=FOLDER, a folder with CIFAR-10's parquet files; 3.3 minutes on two quiet cores.
quickstart: .venv/installed
	@test -n "$(DATA)" || { echo "error: name a folder with CIFAR-10's parquet files: make quickstart DATA=FOLDER"; exit 1; }
	test -f $(RUN)/checkpoints/best.ckpt || $(BIN)/python train.py fit --config configs/train/cifar10_vit_lwta24.yaml --data.root "$(DATA)" \
		--run $(RUN) --trainer.max_epochs 2 --data.train_split 'train[:10000]' --model.warmup_epochs 0.5 \
		--model.noise 0.1
	$(BIN)/python train.py validate --config $(RUN)/config.yaml
	$(BIN)/python dissect.py label --run $(RUN)
	$(BIN)/python dissect.py explain --run $(RUN) test:0 test:1 test:2

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
