# On a machine with Python 3.9+ and make: `make demo` shows the main job, `make test lint` is what CI runs.

PYTHON ?= python3
BIN := .venv/bin
FUZZ_SECONDS ?= 300

.PHONY: demo test test-slow fuzz bench docs lint format clean

# The main job on a real trained checkpoint and real images.
demo: .venv/installed
	$(BIN)/python -m convert.demo

test: .venv/peers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/peers
	$(BIN)/python -m pytest -m slow

# Changes real weight files until a reader does something wrong; what reached new code stays in build/fuzz for the next run.
fuzz: .venv/fuzz
	$(BIN)/python fuzz/fuzz_readers.py -max_total_time=$(FUZZ_SECONDS)

# Latency in every runtime next to its peers, conversion and training, best with nothing else running. It says how long it
# takes; `make bench BENCH=--continue` goes on where one was stopped.
bench: .venv/peers
	mkdir -p build
	$(BIN)/python -m benchmarks.latency --json build/latency.json --plot build/latency.png $(BENCH)
	$(BIN)/python -m benchmarks.conversion
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.growth

# The site, in build/site: its tables and figures again, then the pages. It works offline.
docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/docs
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/figures.py
	$(BIN)/mkdocs build --strict

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cpu,torch,test]"
	touch $@

# The libraries whose networks the tests compare with. Without their dependencies: torchvision would bring a second PyTorch.
# And what exported networks run in.
.venv/peers: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[deploy,train]" openvino
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt torchvision timm pytorchcv
	$(BIN)/python -m pip install --quiet -c constraints.txt huggingface_hub pyyaml requests
	touch $@

.venv/fuzz: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[fuzz]"
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
