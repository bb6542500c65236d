# One word for each thing a contributor needs. PYTHON is the environment of README.md if there is one.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

# What answers quickly: the shape of the package, the core, everything above the kernels that starts no process.
FAST = tests/test_structure.py tests/test_autograd.py tests/test_tensor.py tests/test_functions.py tests/test_graphs.py \
       tests/test_metrics.py tests/test_nonfinite.py tests/test_random.py tests/kernels/test_math.py tests/ops tests/nn tests/optim tests/data tests/jit

.PHONY: check fast test bench docs mutants thorough ci

check:  ## format, lint, types, the shape of the package
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -n 0 tests/test_structure.py

fast:  ## a verdict in less than a minute, once kernels are compiled
	$(PYTHON) -m pytest -x $(FAST)

test:  ## all tests
	$(PYTHON) -m pytest

bench:  ## steps and kernels beside the peers that are installed (extra `bench`)
	$(PYTHON) scripts/bench/bench.py

docs:  ## every example of README.md and of docs/; then the site in docs/_build/html, without a warning (extra `docs`)
	$(PYTHON) -m pytest -n 0 tests/test_readme.py tests/test_docs.py tests/test_reference.py
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs docs/_build/html

mutants:  ## an hour: plants each fault of tests/mutants in a copy; a table says which of them the tests find
	$(PYTHON) tests/programs/mutants.py

thorough:  ## hours: many more random examples, new ones each time; all tests without the JIT and in the simulators
	HYPOTHESIS_PROFILE=thorough $(PYTHON) -m pytest
	$(PYTHON) scripts/drill/drill.py --all --random 50
	$(PYTHON) scripts/drill/many_fits.py
	$(PYTHON) tests/programs/mutants.py
	NUMBA_DISABLE_JIT=1 $(PYTHON) -m pytest -m "not once"
	NUMBA_ENABLE_CUDASIM=1 $(PYTHON) -m pytest -m "not once" tests/kernels tests/ops tests/nn tests/optim \
	    tests/test_tensor.py tests/test_autograd.py tests/test_functions.py tests/test_graphs.py
	SCRATCHNET_GPU=opencl $(PYTHON) -m pytest -m "not once" -k cuda tests/kernels/test_*.py tests/ops

ci:  ## what .ci/run checks of a clean checkout; replaces .venv
	.ci/run
