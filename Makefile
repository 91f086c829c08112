# Every target sets up what it needs: a virtual environment in .venv with the packages of pyproject.toml.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: run test test-slow test-gpu test-vllm lab lint bench clean

run: .venv/ready            ## the embedded default, from problems to outputs/default/09_evaluation/report.html
	$(BIN)/python run_all.py

test: .venv/ready           ## everything that takes seconds
	$(BIN)/python -m pytest -q

test-slow: .venv/ready      ## what takes minutes: processes killed at random, learning to the bar
	$(BIN)/python -m pytest -q -m slow

test-gpu: .venv/ready       ## what needs a GPU
	$(BIN)/python -m pytest -q -m gpu

test-vllm: .venv-vllm/ready ## the vLLM backend on a real engine, on the CPU, in an environment of its own
	@test ! -e .venv-vllm/ready || .venv-vllm/bin/python -m pytest -q -m vllm -rs tests/test_vllm.py

lab: .venv/ready            ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: .venv/ready          ## speeds as ratios to stated baselines, in outputs/bench.json
	$(BIN)/python tests/bench/run.py

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep -o 'torch==[0-9.]*' pyproject.toml)"
	$(BIN)/python -m pip install --quiet -e ".[all]"
	touch $@

.venv-vllm/ready: pyproject.toml tests/vllm_environment.sh
	@PYTHON="$(PYTHON)" sh tests/vllm_environment.sh

clean:                      ## remove the environments; outputs stay
	rm -rf .venv .venv-vllm
