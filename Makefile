# Everything from a fresh clone with Python 3.11+, make and a C++17 compiler: each target makes .venv and installs what it
# needs. Nothing is reinstalled until pyproject.toml, CMakeLists.txt or csrc/ change; the Python sources are used in place.
#
#   make demo   a real network on real images, float against int8        make lint    ruff, mypy, clang-format
#   make test   every test                                               make stubs   qkernels/_native.pyi anew
#   make bench  this machine's limits and shapes                         make format  rewrite the sources' layout
#   make sanitize  the tests again under AddressSanitizer and UBSan      make clean
#   make fuzz   the C API under libFuzzer (clang)
#   make gpu    builds, checks and measures on a real GPU                make cuda-all  compiles for every GPU
#
#   PYTHON=python3.12   JOBS=2   TESTS="tests -k matmul"   BENCH="--filter 1024 --json run.json"   QKERNELS_NATIVE=OFF (no compiled half)

PYTHON ?= python3
JOBS ?= 2
TESTS ?= tests
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc -type f)

# With a compiler, a native half that does not build is an error. Without one the package is pure Python.
CXX_FOUND := $(shell command -v $(or $(filter-out default,$(if $(filter-out default,$(origin CXX)),$(CXX))),c++) || command -v g++ || command -v clang++)
QKERNELS_NATIVE ?= $(if $(CXX_FOUND),ON,OFF)
export QKERNELS_NATIVE

# No build isolation: ninja then recompiles only what changed. The build's own needs are installed once, by hand.
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-build-isolation --editable

.PHONY: fuzz demo test bench bench-pytest peers lint format stubs sanitize clean gpu cuda-all
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python -m qkernels demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n $(JOBS) $(TESTS)

bench: $(VENV)/.bench
	$(BIN)/python -m qkernels bench $(BENCH)

bench-pytest: $(VENV)/.bench
	$(BIN)/python -m pytest -q bench/bench_gemm.py --benchmark-columns=median,iqr,rounds

peers:
	$(MAKE) VENV=.venv-peers .venv-peers/.peers
	.venv-peers/bin/python -m qkernels bench --peers $(BENCH)

stubs: $(VENV)/.test
	$(BIN)/python tests/test_stubs.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

clean:
	rm -rf $(VENV) $(VENV)-sanitize $(VENV)-peers build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# ---------------------------------------------------------------- what the targets stand on
$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qkernels needs Python 3.11, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet numpy "scikit-build-core>=1.0" "pybind11>=3.0" cmake ninja
	touch $@

# A stamp a set of extras. The build folder is one for all, and what it was once asked to build (_emulated) it keeps
# building, so that a later `make demo` does not take the test module away.
$(VENV)/.demo $(VENV)/.bench: $(VENV)/.%: $(VENV)/.made $(SOURCES)
	$(INSTALL) ".[$*]"
	touch $@

$(VENV)/.peers: bench/peers-requirements.txt $(VENV)/.bench
	$(PIP) install --quiet -r bench/peers-requirements.txt
	touch $@

$(VENV)/.test: tests/torch-requirements.txt $(VENV)/.made $(SOURCES)
	$(INSTALL) ".[test]" --config-settings=cmake.define.QKERNELS_EMULATE=ON
	$(PIP) install --quiet -r $<
	touch $@

# mypy reads the types of what is installed: NumPy's and the tests' libraries'.
$(VENV)/.dev: $(VENV)/.test
	$(INSTALL) ".[dev]"
	touch $@

# ---------------------------------------------------------------- memory and undefined behaviour
# Python itself is not instrumented, so the sanitizer is preloaded; leaks are Python's own, by the thousand.
ifeq ($(VENV),.venv)
sanitize:
	$(MAKE) VENV=.venv-sanitize .venv-sanitize/.sanitize
	LD_PRELOAD="$$($(or $(CXX),c++) -print-file-name=libasan.so) $$($(or $(CXX),c++) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  .venv-sanitize/bin/python -m pytest -q -n $(JOBS) -p no:cacheprovider $(TESTS)
endif

# The C API under libFuzzer, with what kernels the sanitized build compiles in minutes; for FUZZ seconds.
FUZZ ?= 600
fuzz: $(VENV)/.made
	PATH="$(abspath $(BIN)):$$PATH" cmake -G Ninja -S . -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DQKERNELS_PYTHON=OFF \
	  -DQKERNELS_ISAS=x86_avx2 -DQKERNELS_SANITIZE=address,undefined,fuzzer-no-link
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/fuzz --parallel $(JOBS)
	clang++ -std=c++17 -O1 -g1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icsrc/include \
	  tests/fuzz/fuzz_capi.cpp -Lbuild/fuzz -Wl,-rpath,$(abspath build/fuzz) -lqkernels -o build/fuzz/fuzz_capi
	mkdir -p build/fuzz/corpus
	build/fuzz/fuzz_capi build/fuzz/corpus -max_total_time=$(FUZZ) -max_len=512 -len_control=0 -artifact_prefix=build/fuzz/

$(VENV)/.sanitize: $(VENV)/.made $(SOURCES)
	$(INSTALL) ".[test]" --config-settings=build-dir=build/sanitize \
	  --config-settings=cmake.define.QKERNELS_EMULATE=ON \
	  --config-settings=cmake.define.QKERNELS_SANITIZE=address,undefined --config-settings=install.strip=false
	touch $@

# ---------------------------------------------------------------- GPUs
# On a machine that has one: a CUDA toolkit, g++ and torch are enough. PYTHON is the Python that has torch.
gpu:
	$(PYTHON) bench/gpu.py --json gpu.json

# Everywhere nvcc is: every GPU kernel for every architecture through the compile gates.
cuda-all: $(VENV)/.test
	QKERNELS_CUDA_GATES=all $(BIN)/python -m pytest -q -n $(JOBS) tests/test_cuda_compile.py
