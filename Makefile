# Needs a Rust toolchain, Python 3.10 or later, make and a C compiler. Everything else goes into .venv and target.

PYTHON ?= python3
VENV := $(CURDIR)/.venv
RUN := $(VENV)/bin/python

# xtask and the emulator look for clang, NVRTC and a C++ compiler through this Python's packages.
export METALCORE_PYTHON := $(RUN)
export METALCORE_CACHE_DIR ?= $(CURDIR)/target/kernels
export PYO3_PYTHON := $(RUN)
export VIRTUAL_ENV := $(VENV)
unexport CONDA_PREFIX METALCORE_EMULATE PYTHONHOME PYTHONPATH

CRATES := --package metalcore --package metalcore-emulator --package xtask
FEATURES := metalcore/cuda,metalcore/emulator
XTASK := cargo run --quiet --package xtask --features $(FEATURES) --
PYTEST := $(RUN) -m pytest -p no:cacheprovider
NATIVE := Cargo.toml Cargo.lock $(shell find crates -name '*.rs' -o -name '*.metal' -o -name '*.h' -o -name '*.cpp' -o -name Cargo.toml)
# make before version 4 cannot keep the output of parallel jobs apart.
PARALLEL := -j 2 $(if $(filter 3.%,$(MAKE_VERSION)),,--output-sync=target)

.DEFAULT_GOAL := help
.PHONY: help demo test test-nightly lint format build wheel clean
.PHONY: rust-tests test-rust test-kernels test-mirror test-python test-emulated test-scaffold test-unwritten

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1  /p' $(MAKEFILE_LIST) | awk '{ name = $$1; $$1 = ""; printf "make %-14s%s\n", name, $$0 }'

demo: $(VENV)/.built ## Short benchmark and training demo on every device; writes benchmarks.md and results/
	@status=0; \
	$(RUN) benchmark.py --quick --device all --md benchmarks.md --plot results/plot.png || status=1; \
	$(RUN) -m metalcore.demo --device all || status=1; \
	exit $$status

test: ## All tests on every device that is there; at the end a line for each device
	@echo "Installing packages and compiling. The first time this takes minutes, and prints little."
	@$(MAKE) --no-print-directory $(PARALLEL) $(VENV)/.built rust-tests
	@# The longest first; the last has two threads of its own.
	@$(MAKE) --no-print-directory $(PARALLEL) --keep-going \
		test-python test-emulated test-rust test-mirror test-kernels
	@$(RUN) tests/summary.py

test-nightly: test test-unwritten ## The same, and what takes longer: exhaustive tests, every bench once, the scaffold
	$(RUN) -m pip install --quiet --disable-pip-version-check transformers
	$(PYTEST) --nightly
	METALCORE_EMULATE=1 $(PYTEST) --nightly
	$(RUN) benchmark.py --lite --device all
	cargo bench --package metalcore --bench ops -- --test
	cargo run --release --package metalcore --example factor

lint: $(VENV)/.tools ## Formatting and lints of Rust and Python
	@cargo fmt --version >/dev/null && cargo clippy --version >/dev/null || \
		{ echo "lint needs rustfmt and clippy: rustup component add rustfmt clippy" >&2; exit 1; }
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	$(RUN) -m ruff check python tests benchmark.py
	$(RUN) -m ruff format --check python tests benchmark.py

format: $(VENV)/.tools ## Formats Rust and Python
	cargo fmt --all
	$(RUN) -m ruff check --fix python tests benchmark.py
	$(RUN) -m ruff format python tests benchmark.py

build: $(VENV)/.built ## The extension module, in release mode, for the Python in .venv

wheel: $(VENV)/.tools ## A wheel for this platform, in dist/
	$(RUN) -m maturin build --release --out dist

clean: ## Removes what was built or installed; keeps results/
	rm -rf target dist .venv .ruff_cache
	find python tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f python/metalcore/_native*.so

$(VENV)/.tools: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "maturin>=1.9,<2" ruff
	@touch $@

# Installs torch and the other packages, then builds.
$(VENV)/.installed: $(VENV)/.tools Cargo.toml
	PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 $(RUN) -m maturin develop --quiet --release --extras bench,test
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	$(RUN) -m maturin develop --quiet --release --skip-install
	@touch $@

rust-tests:
	cargo test --quiet $(CRATES) --features $(FEATURES) --no-run

test-rust:
	cargo test --quiet $(CRATES) --features $(FEATURES)

test-kernels: $(VENV)/.built
	$(if $(filter Darwin,$(shell uname)),@echo "kernels: skipped: there is no NVRTC for macOS",$(XTASK) kernels)

test-mirror: $(VENV)/.built
	$(XTASK) mirror

test-python: $(VENV)/.built
	$(PYTEST)

test-emulated: $(VENV)/.built
	METALCORE_EMULATE=1 $(PYTEST)

# A new operation compiles as it is made, and its tests fail until it is written.
SCAFFOLD := target/scaffold
SCAFFOLDED := cd $(SCAFFOLD) && CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),$(CURDIR)/target) cargo
test-scaffold: $(VENV)/.tools
	@rm -rf $(SCAFFOLD) && mkdir -p $(SCAFFOLD)
	@cp -R Cargo.toml Cargo.lock CHANGELOG.md rustfmt.toml crates xtask python tests $(SCAFFOLD)
	$(XTASK) new-op op_name --edit --root $(SCAFFOLD)
	$(SCAFFOLDED) fmt --all
	$(SCAFFOLDED) clippy --quiet --workspace --all-targets -- -D warnings

test-unwritten: test-scaffold
	! { $(SCAFFOLDED) test --quiet --package metalcore --features emulator op_name; }
