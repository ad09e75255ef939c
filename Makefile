# Every command makes its own virtual environment (.venv) and installs from constraints.txt; a second run reuses it.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# OpenMP teams that spin while they wait slow each other down many times; this must be set before torch is imported.
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Containers tell Python to keep no bytecode: then each of the hundreds of processes that the tests start compiles the
# whole package anew, and each worker of pytest rewrites every file of tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test slow check docs dist bench conformance claims figure clean

help: ## Show the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## Train six methods, survey them and write runs/demo/report.html
	$(BIN)/lowland demo

test: $(VENV)/.dev ## Run the tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal # runs of neighbors stay together, and share what their module makes

slow: $(VENV)/.dev ## Run the tests that take longer
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow and not gpu" -n 2 --dist worksteal --durations=15

check: $(VENV)/.dev docs ## Check style, types, layers and the examples in docstrings; build the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest --doctest-modules src -n 2

docs: $(VENV)/.docs ## Build the documentation into site/
	OMP_NUM_THREADS=1 $(BIN)/python examples/gallery.py docs/images
	OMP_NUM_THREADS=1 $(BIN)/python examples/traps.py docs/images/traps
	OMP_NUM_THREADS=1 $(BIN)/python docs/tools/tutorials.py docs/images/tutorials
	OMP_NUM_THREADS=1 $(BIN)/python docs/tools/architecture.py docs/images/architecture.svg
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.figure --only draw
	$(BIN)/mkdocs build --strict # --quiet would hide what --strict counts

dist: export SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct 2> /dev/null || echo 0)
dist: $(VENV)/.dev ## Build wheel, sdist and bill of materials into dist/, and try the wheel in an environment of its own
	rm -rf dist
	umask 022 && $(BIN)/python -m build --outdir dist .
	umask 022 && $(BIN)/python -m build --outdir dist/again . # the same source gives the same wheel, bit for bit
	cmp dist/*.whl dist/again/*.whl && rm -r dist/again
	$(PYTHON) -m venv dist/.venv
	dist/.venv/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd dist && .venv/bin/lowland doctor && .venv/bin/lowland demo --help > /dev/null
	dist/.venv/bin/python docs/tools/sbom.py dist/lowland.cdx.json

bench: $(VENV)/.bench ## Run the benchmarks; each prints one table and stores it under benchmarks/results
	@for script in benchmarks/*.py; do echo "$$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

conformance: $(VENV)/.bench ## Check our tools and other packages against lowland.testing and write docs/conformance.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.conformance

claims: $(VENV)/.dev ## Measure the published claims (resumable; 75 minutes of two cores) and write docs/claims.md
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.claims --engine processes:2

figure: $(VENV)/.dev ## Train and survey deep networks with and without shortcuts (resumable; hours) and write docs/figure.md
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.figure

clean: ## Remove the environment and caches
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis site

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[data]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[augment,data,dev,film,hdf5,hf,lightning,optuna,peft,ray,remote,robust,tensorboard,trackers]"
	# curvlinops asks for torchvision without importing it: install it and what it really uses by name
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps curvlinops-for-pytorch linear_operator jaxtyping wadler_lindig einops einconv opt_einsum tqdm
	touch $@ $(VENV)/.demo

# The packages that we compare with, each by itself: one that does not install is left out. Without dependencies, since
# one of them asks for NumPy below 2 and does not need it; what they import follows by name.
PEERS := pytorch-optimizer PyHessian hessian-eigenthings==1.0.0a5 loss-landscapes landscaper
PEERS += temperon unifiedsam schedulefree torch2-look-ahead loss-landscape-3d nngeom
PEERS += gudhi topopy nglpy samply treelib six coloraide drawsvg

$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/.dev
	@for peer in $(PEERS); do $(BIN)/pip install --quiet --constraint constraints.txt --no-deps $$peer \
		|| echo "$$peer does not install and is left out"; done
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@
