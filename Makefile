# On a machine with Python 3.9+ and make: `make demo` shows the main job, `make test lint` is what CI runs.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow bench lint format clean

# The main job on a real trained checkpoint and real images.
demo: .venv/installed
	$(BIN)/python -m convert.demo

test: .venv/peers
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/peers
	$(BIN)/python -m pytest -m slow

# Latency in every runtime beside its peers, conversion and training: about an hour on two cores, best with nothing else.
bench: .venv/runtimes
	mkdir -p build
	$(BIN)/python -m benchmarks.latency --json build/latency.json --plot build/latency.png
	$(BIN)/python -m benchmarks.conversion
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.digits

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[deploy,train]"
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt torchvision timm pytorchcv
	$(BIN)/python -m pip install --quiet -c constraints.txt huggingface_hub pyyaml requests
	touch $@

.venv/runtimes: .venv/peers
	$(BIN)/python -m pip install --quiet -c constraints.txt openvino
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
