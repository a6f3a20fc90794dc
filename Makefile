# Sash: what a developer types. The first call of `run` or `test` makes .venv; later calls touch no network.
# PYTHON names the interpreter that .venv is made with (3.11 or newer): make PYTHON=python3.12 test

VENV   := .venv
BIN    := $(VENV)/bin
PACKAGES := $(VENV)/.installed
STAMP  := $(VENV)/.kernels
JOBS   ?= 2
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
            $$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && exit; done; echo python3)

# The native kernels: built here, put into .venv. KERNELS=off leaves them out, and torch does their work.
KERNELS ?= on
BUILD   := build/kernels
NATIVE  := CMakeLists.txt $(wildcard src/sash/kernels/*.cpp src/sash/kernels/*.h)
ISA_TESTS ?= tests/kernels
WERROR  ?= OFF
SYMBOLS ?= OFF
SITE    = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
CONFIGURE = $(BIN)/cmake -S . -B $(BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DSASH_OUTPUT_DIR=$(SITE) -DSASH_WERROR=$(WERROR) -DSASH_SYMBOLS=$(SYMBOLS)

# Benchmarks that take hours, or arguments.
LONG    := benchmarks/rivals.py benchmarks/serving.py benchmarks/soak.py benchmarks/instructions.py benchmarks/large.py benchmarks/machine.py
MODELS  := gemma-3-270m smollm2-135m-instruct
CHAPTERS := examples/emma_chapters_1_to_5.txt

.PHONY: help run test kernels test-isas test-properties test-models test-large test-simulation test-chaos web test-web lint bench rivals soak docs clean

help:
	@echo 'make run          a real sliding-window model reads five chapters of Emma and writes on'
	@echo 'make test         the default tests'
	@echo 'make kernels      build the native kernels again (SYMBOLS=ON keeps names and lines for profilers)'
	@echo 'make test-isas    the tests of the kernels with each instruction set of this machine, and with none'
	@echo 'make test-properties  2,000 random schedules of chunks, windows, pins and company'
	@echo 'make test-models  the tests on the real checkpoints of the catalogue (pulled once, 325 MB)'
	@echo 'make test-large   the tests that need 24 GiB of memory'
	@echo 'make test-simulation  a million requests through the scheduler, and a thousand faults in the engine'
	@echo 'make test-chaos   the server against thousands of hostile clients; files against kills, torn writes and flipped bits'
	@echo 'make web          build the page anew into the package (needs Node.js)'
	@echo 'make test-web     is the built page that of its source, and do all its flows work (needs Node.js and Chromium)'
	@echo 'make lint         ruff and mypy'
	@echo 'make bench        every benchmark that takes minutes; a table each'
	@echo 'make rivals       Sash against transformers, vLLM, llama.cpp and OpenVINO (installs them: 15 GB, an hour or two)'
	@echo 'make soak         an hour of mixed load on a server: memory, file descriptors, rows'
	@echo 'make docs         write docs/cli.md anew and check the links of the pages'
	@echo 'make clean        remove .venv, build and caches (pulled models stay; see sash rm)'

# A stamp is newer than what it was made from, so a second call asks pip nothing and compiles nothing. What builds
# the kernels is installed like any other package: no build fetches anything by itself.
$(PACKAGES): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || \
	  { echo 'error: Sash needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo 'error: $(PYTHON) cannot make a virtual environment; install its venv module' >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt scikit-build-core nanobind cmake ninja
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-build-isolation \
	  -Cwheel.cmake=false -Ceditable.mode=inplace -e '.[dev]'
	@touch $@

# A machine that cannot build (no compiler, no headers of Python) is fine: it is said, and torch serves. A machine
# that can, and fails at the sources, is an error.
$(STAMP): $(PACKAGES) $(NATIVE)
	@if test '$(KERNELS)' = off; then \
	  rm -f $(SITE)/_sash_kernels.*; echo 'note: without native kernels (KERNELS=off); torch does their work'; \
	elif $(CONFIGURE) > $(VENV)/kernels.log 2>&1; then \
	  $(BIN)/cmake --build $(BUILD) || \
	    { echo 'error: the kernels do not compile; make KERNELS=off ... works without them' >&2; exit 1; }; \
	else \
	  rm -f $(SITE)/_sash_kernels.*; \
	  echo 'note: without native kernels: no C++17 compiler works here ($(VENV)/kernels.log says why);' \
	    'torch does their work. After installing one: make kernels'; \
	fi
	@touch $@

kernels: $(PACKAGES)
	$(CONFIGURE)
	$(BIN)/cmake --build $(BUILD)
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/sash run gemma-3-270m -f $(CHAPTERS) --max-tokens 120 --stats

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --ignore=tests/web

test-isas: $(STAMP)
	@set -e; for isa in $$($(BIN)/python -c 'from sash.kernels.isa import available_isas; print(*available_isas(), "none")'); do \
	  echo "== SASH_ISA=$$isa"; SASH_ISA=$$isa OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ISA_TESTS); \
	done

test-properties: $(STAMP)
	SASH_PROPERTY_CASES=2000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --timeout 1500 tests/network/test_decoder.py \
	  -k 'chunked_equals_one_forward or equals_the_oracle'

test-models: $(STAMP)
	$(BIN)/sash pull $(MODELS)
	$(BIN)/python -m pytest -m models

test-large: $(STAMP)
	$(BIN)/python -m pytest -m large

test-simulation: $(STAMP)
	SASH_SIMULATION_SEEDS=10000 SASH_FAULTS=1000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --timeout 3000 \
	  tests/engine/test_simulation.py tests/engine/test_walls.py

test-chaos: $(STAMP)
	SASH_CHAOS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 3000 tests/server \
	  tests/test_saved_damage.py tests/engine/test_snapshot_files.py tests/engine/test_damaged_pieces.py

web/node_modules: web/package.json web/package-lock.json
	npm ci --prefix web --no-audit --no-fund
	@touch $@

web: web/node_modules
	npm run --prefix web build

test-web: $(STAMP) web/node_modules
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/web $(WEB_TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	@set -e; for script in $(sort $(filter-out $(LONG),$(wildcard benchmarks/*.py))); do echo "== $$script"; $(BIN)/python $$script; done

rivals: $(STAMP)
	$(BIN)/python benchmarks/rivals.py

soak: $(STAMP)
	$(BIN)/python benchmarks/soak.py

docs: $(STAMP)
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/check_links.py

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
