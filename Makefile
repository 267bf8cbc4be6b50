# Each target first creates .venv and installs the project if needed. Nothing is installed twice.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet
# The tests that start nothing (not "slow") run two at a time. Each slow test has the machine to itself.
QUICK = $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile
SLOW = $(BIN)/python -m pytest -q -m slow --durations=10
# With it set, every process of a cluster would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE
MINISTACK := $(shell sed -n 's/^MINISTACK = "\(.*\)"/\1/p' infra/services.py)

.PHONY: install demo test check lint up down bench chaos mutations clean

# What the commands need, and with it what tests and checks need.
RUN := .venv/.installed .venv-s3/.installed
install: .venv/.developed .venv-s3/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or 3.12 (found: $$(python3 --version 2>&1)); name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@case "$$(uname -s)" in Linux|Darwin) ;; *) echo "needs Linux or macOS; on Windows, use WSL"; exit 1;; esac
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: 2.2 GB, some minutes"
	$(PIP) "torch==2.13.0"
	$(PIP) -c constraints.txt -e .
	@touch $@

.venv/.developed: .venv/.installed
	$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

.venv-s3/.installed: infra/services.py .venv/.installed
	@test -x .venv-s3/bin/python || $(BIN)/python -m venv .venv-s3
	.venv-s3/bin/python -m pip install --disable-pip-version-check --quiet "$(MINISTACK)"
	@touch $@

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict ccnet pipeline

check: lint
	$(QUICK)

test: lint
	$(QUICK)
	$(SLOW)

up: $(RUN)
	$(BIN)/python -m infra.stack up

down: $(RUN)
	$(BIN)/python -m infra.stack down

# Every command of the demo can be typed by hand. After an interruption, run it again: it resumes from the last checkpoint.
demo: $(RUN)
	$(BIN)/python -m infra.stack up
	. .stack/env && $(BIN)/python -m jobs.prepare jobs/configs/demo.yaml
	. .stack/env && $(BIN)/python -m jobs.submit train jobs/configs/demo.yaml
	. .stack/env && $(BIN)/python -m jobs.predict jobs/configs/demo.yaml predict.limit=4 predict.output=outputs/demo
	$(BIN)/python -m infra.stack status
	@echo "MLflow and the Ray dashboard (token: .stack/ray.token) stay up for browsing; make down stops them."
	@echo "overlays of four validation images: outputs/demo"
	@. .stack/env && $(BIN)/python -m jobs.config jobs/configs/demo.yaml | sed -n 's/^# //p'
	@echo "         in Python, after: source .stack/env && source .venv/bin/activate"

# On its own cluster, because it can measure the memory of its own processes only.
BENCH ?= jobs/configs/bench.yaml
bench: $(RUN)
	$(BIN)/python -m infra.stack up
	. .stack/env && unset RAY_ADDRESS && $(BIN)/python -m jobs.benchmark $(BENCH)

# Kills, freezes and starves trainings on its own servers for about an hour; writes docs/chaos.md.
chaos: install
	$(BIN)/python -m tests.chaos

# Puts ten faults into a copy of the code, one after another. A test must fail for each.
mutations: install
	$(BIN)/python -m tests.mutations

clean: install
	$(BIN)/python -m infra.stack down
	rm -rf .stack outputs
