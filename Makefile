# Everything a fresh machine needs: `make demo` and `make test` set themselves up.
#
#   make setup   system libraries, .venv, torch's CPU build unless a torch is there, build
#   make demo    restore photographs, print a table, write demo/demo.png
#   make test    lint, C checks with sanitizers, pytest, README code
#   make test-interop   LPIPS, FID and deepinv, in .venv-interop (several GB: torchvision's torch)
#   make results every method on photographs, PSLD's step size: results/*.md, *.png (hours; goes
#                on where it stopped)
#   make bench   ratios against the torch expressions of the published codes
#   make lint    ruff, mypy, clang-format
#   make clean   removes what was built, keeps .venv;  make distclean removes that too

PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV ?= .venv
BIN = $(VENV)/bin
VENV_INTEROP ?= .venv-interop
INTEROP = torch==2.14.1 torchvision==0.29.1 deepinv==0.5.0 "torchmetrics[image]==1.9.0"
# One thread each for the libraries beside our own: idle workers spin.
QUIET = OMP_WAIT_POLICY=passive

.PHONY: setup demo test test-interop bench results lint check-c clean distclean

SYSTEM_LIBRARIES = openblas lapacke fftw3 fftw3f
SYSTEM_PACKAGES = libopenblas-dev liblapacke-dev libfftw3-dev pkg-config

setup: $(VENV)/.installed

# Again only when the list of requirements or a compiled source changes.
SOURCES = setup.py pyproject.toml $(wildcard csrc/src/* csrc/bind/* csrc/include/dsg/*)

$(VENV)/.system:
	@pkg-config --exists $(SYSTEM_LIBRARIES) 2>/dev/null || { \
	    echo "installing system packages: $(SYSTEM_PACKAGES)"; \
	    if [ "$$(id -u)" = 0 ]; then run=; else run="sudo -n"; fi; \
	    { $$run apt-get update -qq && \
	      $$run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(SYSTEM_PACKAGES); } || { \
	        echo "please install: $(SYSTEM_PACKAGES)"; exit 1; }; }
	@pkg-config --exists $(SYSTEM_LIBRARIES) || { echo "please install: $(SYSTEM_PACKAGES)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	    echo "please install python3.11 with its venv module"; exit 1; }
	@touch $@

# A bare torch would bring several GB of GPU libraries.
$(VENV)/.torch: $(VENV)/.system
	@$(BIN)/python -c "import torch" 2>/dev/null || { \
	    echo "installing torch's CPU build"; \
	    $(BIN)/pip install -q torch==2.13.0 $(TORCH_OPTIONS); }
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install -q "setuptools>=77" wheel
	$(BIN)/pip install -q --no-build-isolation -e ".[dev]"
	@touch $@

demo: setup
	$(QUIET) $(BIN)/diffstategrad demo --out demo

# What the torch formulas of diffstategrad/reference promise like the compiled core.
REFERENCE_TESTS = $(addprefix tests/test_,operators.py blind.py check.py projection.py metrics.py \
                  methods.py)

test: setup lint check-c
	$(QUIET) $(BIN)/pytest
	DSG_BACKEND=reference $(QUIET) $(BIN)/pytest $(REFERENCE_TESTS)

test-interop: $(VENV_INTEROP)/.installed
	$(QUIET) $(VENV_INTEROP)/bin/pytest tests/interop

$(VENV_INTEROP)/.libraries: | $(VENV)/.system
	$(PYTHON) -m venv $(VENV_INTEROP)
	$(VENV_INTEROP)/bin/pip install -q $(INTEROP) pytest "setuptools>=77" wheel
	@touch $@

# From a copy and not in place: the compiled module beside the sources is for the other torch.
PACKAGE = setup.py pyproject.toml README.md LICENSE csrc configs diffstategrad
$(VENV_INTEROP)/.installed: $(VENV_INTEROP)/.libraries $(SOURCES) \
    $(shell find diffstategrad configs -name '*.py' -o -name '*.yaml' -o -name '*.safetensors')
	copy=$$(mktemp -d) && cp -r $(PACKAGE) $$copy && \
	    $(VENV_INTEROP)/bin/pip install -q --no-build-isolation "$$copy[metrics,deepinv]"; \
	    done=$$?; rm -rf $$copy; exit $$done
	@touch $@

check-c: setup
	$(MAKE) -C csrc check asan ubsan tsan

bench: setup
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/bench -m bench

JOBS ?= 1
results: setup
	$(BIN)/python tests/bench/results.py --jobs $(JOBS) --out results
	$(BIN)/python tests/bench/step_size.py --jobs $(JOBS) --out results

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" $(MAKE) -C csrc lint

clean:
	$(MAKE) -C csrc clean
	rm -rf build demo *.egg-info diffstategrad/_core*.so $(VENV)/.installed

distclean: clean
	rm -rf $(VENV) $(VENV_INTEROP) results
