# Everything runs in .venv, which is made when it is missing. PYTHON is what makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
NATIVE := CMakeLists.txt setup.py $(shell find csrc -type f)
CXX_SOURCES := $(shell find csrc -type f) $(wildcard tests/cuda/*.cpp)
PYTEST := $(BIN)/python -m pytest -q

.PHONY: gpu gpu-test gpu-ceilings gpu-bench gpu-build
.PHONY: train test test-all cuda cuda-check sanitize bench bench-avx2 bench-kernels rivals tables lint types format venv clean

train: venv  ## the main job: a sparse network on real data, from the recipe to the kernel
	$(BIN)/sparsekern train digits-rigl

test: venv  ## the test suite, at most 12 minutes on two cores
	$(PYTEST) -m "not slow and not gpu and not device_code"

test-all: venv  ## everything, without a time limit
	$(PYTEST) -m "not gpu"

cuda: venv  ## CUDA C++ kernels into sparsekern/lib, some minutes; needs nvcc, no GPU and no CUDA torch
	$(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(BIN)/ninja" \
	  -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" -DSPARSEKERN_CUDA=1 \
	  $(if $(SPARSEKERN_CUDA_ARCHS),-DSPARSEKERN_CUDA_ARCHS="$(SPARSEKERN_CUDA_ARCHS)") \
	  -DSPARSEKERN_TORCH_DIR="$$($(BIN)/python -c 'import os, torch; print(os.path.dirname(torch.__file__))')"
	$(BIN)/cmake --build build/cuda --target sparsekern_cuda

cuda-check: venv  ## device code compiles for every architecture, without spills; needs no GPU
	$(PYTEST) -s -m device_code tests/kernels tests/cuda

sanitize: venv  ## native tests under the address and undefined-behaviour sanitizers
	.ci/sanitize

bench: venv  ## kernels against dense and the installable rivals; tables under bench/results
	$(BIN)/python -m bench.run $(SUITES)

# Dense layers, too, kept to AVX2.
AVX2 := SPARSEKERN_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2
bench-avx2: venv  ## the main suites as on a machine without AVX-512
	$(AVX2) $(BIN)/python -m bench.run linear conv2d

bench-kernels: venv  ## every op and variant alone, under pytest-benchmark (ARGS="-k csr_linear")
	$(BIN)/python -m pytest -q bench/test_kernels.py --benchmark-only $(ARGS)

rivals: venv  ## the packages that `make bench` compares with, where pip can install them
	-$(BIN)/python -m pip install --quiet --no-deps sparselab==0.2.2
	-$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation sparseprop==0.1.14

tables:  ## README tables and pictures from bench/results
	$(BIN)/python -m bench.tables

# On a machine with an NVIDIA GPU. PYTHON is used as it is (torch with CUDA, triton, pytest, typer and
# rich must be there) and nothing is installed. Rows are appended as they are measured, below RESULTS; a
# tree that is no repository says with SPARSEKERN_COMMIT=... which commit it is.
RESULTS ?= bench/results
# Builds what is missing; `left` is then what is left of so many seconds.
WITHIN = start=$$(date +%s); $(if $(BUILT),,$(MAKE) --no-print-directory gpu-build;) \
	left() { echo $$(($(1) - $$(date +%s) + start)); }; export PYTHONUNBUFFERED=1
MEASURE = $(PYTHON) -m bench.gpu.run --results $(RESULTS) --budget-s

gpu:  ## gpu-test, gpu-ceilings and gpu-bench in 9 minutes, the build included
	@$(call WITHIN,$(or $(BUDGET_S),510)); status=0; \
	$(MAKE) gpu-test BUILT=1 BUDGET_S=$$(($$(left) * 2 / 5)) || status=1; \
	$(MAKE) gpu-ceilings BUILT=1 BUDGET_S=$$(($$(left) / 3)) || status=1; \
	$(MAKE) gpu-bench BUILT=1 BUDGET_S=$$(left) || status=1; \
	exit $$status

gpu-test:  ## the contract of every op on the device, tests marked gpu; 4 minutes at most
	@$(call WITHIN,$(or $(BUDGET_S),230)); \
	$(PYTHON) -m tests.gpu.run --results $(RESULTS) --budget-s $$(left)

gpu-ceilings:  ## what the device and torch's own sparsity reach (CEILINGS="semi_structured")
	@$(call WITHIN,$(or $(BUDGET_S),200)); $(MEASURE) $$(left) $(or $(CEILINGS),all-ceilings)

gpu-bench:  ## our kernels against them (SUITES="block topk"), within BUDGET_S seconds
	@$(call WITHIN,$(or $(BUDGET_S),200)); $(MEASURE) $$(left) $(or $(SUITES),all-suites)

gpu-build:
	@timeout 150 $(PYTHON) -m bench.gpu.build || echo "native libraries: not built in time; going on without"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

types: venv
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

venv: $(VENV)/stamp  ## the set-up alone

$(VENV)/packages: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet "cmake>=3.26" "ninja>=1.11" "pybind11>=2.13" "setuptools>=77"
	touch $@

$(VENV)/stamp: $(VENV)/packages $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

clean:
	rm -rf build $(VENV) sparsekern/lib sparsekern/*.so *.egg-info
