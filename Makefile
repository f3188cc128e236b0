# make demo | test        on a fresh machine: virtual environment, PyTorch, build, run
# make build | dev        build; rebuild what changed
# make resources          write tests/cpp/resources.txt again: registers, spills, shared memory of the Hopper instances
# make test-gpu | sanitize | bench | bench-trace | bench-sweep
#                         from a built tree, under any Python that has PyTorch (PYTHON=...); ARGS="--fa3 ..."
#
# TORCH=torch==2.11.0 takes another PyTorch, VENV=... another directory, VARATTN_CUDA=OFF leaves the CUDA part out.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv

VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/installed-$(TORCH)
# cmake and ninja come from the environment, whatever the machine has.
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: demo test build dev resources test-gpu sanitize bench bench-trace bench-sweep clean

demo: build
	$(VENV_PYTHON) -m varattn demo

test: build
	ctest --test-dir build/cmake --output-on-failure --no-tests=error
	$(VENV_PYTHON) -m pytest tests/python

build: $(INSTALLED)
	@command -v nvcc >/dev/null || test -x /usr/local/cuda/bin/nvcc || test "$(VARATTN_CUDA)" = OFF || \
	    echo "varattn: no nvcc: building the CPU part alone"
	$(VENV_PYTHON) setup.py build_ext --inplace
	$(VENV_PYTHON) -m pip install --quiet --no-build-isolation --editable ".[demo,test]"

dev:
	cmake --build build/cmake

resources: dev
	build/cmake/tests/cpp/varattn_resources > tests/cpp/resources.txt

$(INSTALLED):
	$(PYTHON) -m venv $(VENV) || { echo "varattn: on Debian and Ubuntu, 'apt-get install python3-venv' brings the venv module"; exit 1; }
	$(VENV_PYTHON) -m pip install --quiet --upgrade pip
	$(VENV_PYTHON) -m pip install "$(TORCH)" "setuptools>=77" wheel cmake ninja pybind11
	touch "$@"

test-gpu:
	PYTHONPATH=python VARATTN_TEST_DEVICE=cuda $(PYTHON) -m pytest tests/python

# memcheck sees what our kernels touch; allocations are those of the driver, so that it sees their ends.
SANITIZER ?= compute-sanitizer
SANITIZER_TOOL ?= memcheck
sanitize:
	for kernel in sm90 portable; do \
	    VARATTN_KERNEL=$$kernel PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=python $(SANITIZER) \
	        --tool $(SANITIZER_TOOL) --kernel-name kns=varattn --error-exitcode 1 $(PYTHON) tests/sanitize.py || exit 1; \
	done

bench:
	PYTHONPATH=python $(PYTHON) benchmarks/bench.py $(ARGS)

bench-trace:
	PYTHONPATH=python $(PYTHON) benchmarks/trace_bench.py $(ARGS)

bench-sweep:
	PYTHONPATH=python $(PYTHON) benchmarks/sweep.py $(ARGS)

clean:
	rm -rf build python/varattn/*.so python/*.egg-info
