# Learning from failures in multi-attempt reinforcement learning: the main commands.

PYTHON ?= python3
PRESET ?= miniature
# Some commands in use say BENCHMARKS=paper, which is the same as DATA=paper.
DATA ?= $(BENCHMARKS)
ARGS ?=
PY := .venv/bin/python

# One thread for the tiny models of the riddles: two are faster on an idle machine, much slower on a busy one (docs/speed.md).
RIDDLES := runs/miniature/base runs/cue/base test smoke $(if $(filter miniature cue,$(PRESET)),train baseline)
$(RIDDLES): export OMP_NUM_THREADS ?= 1

.PHONY: help train baseline reproduce ablations bench-rollout bench-gpu memory evaluate lint test smoke clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*##/ { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

runs/miniature/base runs/cue/base: data/miniature.py data/sft.py | .venv/ready
	$(PY) -m data.miniature --out $@ $(if $(filter runs/cue/base,$@),--cue)

runs/smollm2/base: | .venv/ready
	$(PY) -m data.smollm2 --out $@ $(if $(MODEL),--model $(MODEL))

# `make train MODEL=... DATA=...` is a mistake; only smollm2 has a MODEL, which it fine-tunes
ifneq ($(filter train baseline,$(MAKECMDGOALS)),)
ifneq ($(filter command,$(origin DATA) $(if $(filter smollm2%,$(PRESET)),,$(origin MODEL))),)
$(error give your own model and data as ARGS="--model FOLDER --data FILE")
endif
endif

# the base models that are built here and not downloaded
BASE := $(if $(filter miniature cue smollm2 smollm2-gpu,$(PRESET)),runs/$(PRESET:-gpu=)/base)

train: .venv/ready $(BASE)  ## train: PRESET=miniature (or cue, smollm2, smollm2-gpu, paper), any option as ARGS="--seed 3 --max_attempts 1"
	$(PY) train.py --preset $(PRESET) $(ARGS)

baseline: override ARGS += --max_attempts 1
baseline: train  ## the same with a single attempt, the paper's baseline

# `make reproduce` compares on both kinds of riddles
COMPARED := $(if $(filter miniature,$(PRESET)),cue miniature,$(PRESET))

reproduce: .venv/ready  ## multi- against single-attempt training on both kinds of riddles: SEEDS="0 1 2 3 4", or PRESET=cue, smollm2
	@test -z "$(filter-out miniature cue smollm2,$(PRESET))" || { echo 'make reproduce: PRESET must be miniature, cue or smollm2' >&2; exit 2; }
	$(MAKE) -j2 $(patsubst %,runs/%/base,$(COMPARED))
	$(PY) -m bench.reproduce --preset $(COMPARED) --seeds $(or $(SEEDS),0) $(if $(ARGS),--extra $(ARGS))

ablations: .venv/ready runs/miniature/base runs/cue/base  ## how fast variants of the paper's recipe learn, 60 runs of 1 to 3 minutes: SEEDS="0 1 2"
	$(PY) -m bench.ablations --seeds $(or $(SEEDS),0 1 2) $(if $(PROCESSES),--processes $(PROCESSES)) $(if $(ARGS),--extra $(ARGS))

bench-rollout: .venv/ready  ## the rollout beside transformers' ways to generate: about 10 minutes
	$(PY) -m bench.rollout

memory: .venv/ready  ## what fits on one GPU: the GiB that Qwen2.5's sizes need, and the options that help (computed)
	$(PY) -m support.memory

bench-gpu: .venv/ready  ## exactness and speed of rollout and update on a GPU: about 6 minutes
	$(PY) -m bench.gpu $(ARGS)

evaluate: .venv/ready  ## accuracy at 1, 2, ... attempts: MODEL=folder-or-hub-name[,another] DATA=data-set[,another] (paper: its five) ATTEMPTS=7
	@test -n "$(MODEL)" -a -n "$(DATA)" || { echo 'make evaluate needs a model and a data set: make evaluate MODEL=runs/NAME/model DATA=riddles-test, or DATA=paper' >&2; exit 2; }
	$(PY) evaluate.py --model "$(MODEL)" --data "$(DATA)" $(if $(ATTEMPTS),--attempts $(ATTEMPTS)) $(ARGS)

lint: .venv/ready  ## formatter and linter
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

test: .venv/ready  ## all tests
	$(PY) -m pytest -q -n auto --maxprocesses 4 tests

smoke: .venv/ready  ## the whole chain with tiny numbers, in under a minute
	rm -rf runs/smoke
	$(PY) -m data.miniature --out runs/smoke/base --steps 40 --batch 32
	$(PY) train.py --preset smoke --out runs/smoke/run
	! grep '"learned": 0.0' runs/smoke/run/metrics.jsonl  # every step has trained
	$(PY) evaluate.py --model runs/smoke/base,runs/smoke/run/model --data riddles-validation --limit 4 --attempts 2 --max_new_tokens 64 --max_attempt_tokens 24 --out runs/smoke/evaluation

clean:  ## delete the virtual environment and caches; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
