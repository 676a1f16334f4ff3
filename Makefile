# make run: sets up .venv, makes a picture of PROMPT with the model inside the package and says where it lies.
# make run PROMPT="a cat and a rocket" ARGS="--seed 7": any other flag of `sdjax txt2img`, as --ckpt for another model.
# make serve: sets up .venv and serves a page for the browser, with the model inside the package; ARGS: flags of `sdjax serve`.
# make test: sets up .venv and runs the default tests. make test-all: the slow ones and the comparisons with PyTorch too.
# make test-browser: the tests of the page, in Chromium (CHROMIUM names it; by default the one on the PATH).
# make docs: sets up .venv and builds the manual in docs/_build/html, running its notebook; a warning is an error.
# make train-builtin: trains the built-in model in runs/builtin, going on where the last run stopped (docs/built-in-model.md).
PYTHON ?= python3
VENV ?= .venv
PROMPT ?= a rocket on a green background
BIN = $(VENV)/bin
# The filter: setuptools warns of folders that bear the package's name, at every editable installation
PIP = PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP = $(VENV)/.installed
TEST_STAMP = $(VENV)/.installed-test
SERVE_STAMP = $(VENV)/.installed-server
DOCS_STAMP = $(VENV)/.installed-docs

.PHONY: run serve test test-all test-browser docs train-builtin lint lint-tree clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "sdjax needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable .
	@touch $@

$(TEST_STAMP): $(STAMP)
	$(PIP) --editable '.[lint]'
	@touch $@

$(SERVE_STAMP): $(STAMP)
	$(PIP) --editable '.[server]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(PIP) --editable '.[docs]'
	@touch $@

# The prompt goes through the environment, so that no shell takes apart what stands in it. ARGS alone may name a prompt
run: export SDJAX_PROMPT := $(PROMPT)
run: $(STAMP)
	@$(BIN)/sdjax txt2img $(if $(findstring --prompt,$(ARGS))$(findstring --from-file,$(ARGS)),,--prompt "$$SDJAX_PROMPT") \
		--n_iter 1 --n_samples 1 --skip_grid $(ARGS)

serve: $(SERVE_STAMP)
	@$(BIN)/sdjax serve $(ARGS)

test: $(TEST_STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(TEST_STAMP) lint
	$(PIP) --editable '.[test,compare]'
	SDJAX_TEST_OPTIMIZED=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not gpu and not browser' $(ARGS)

test-browser: $(TEST_STAMP)
	$(PIP) --editable '.[browser]'
	$(BIN)/python -m pytest -m browser $(ARGS)

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build/html
	@echo "The manual begins at docs/_build/html/index.html"

# glibc keeps the memory that XLA asks for at every step, in huge pages (docs/performance.md)
train-builtin: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368:glibc.malloc.top_pad=268435456:glibc.malloc.arena_max=1
train-builtin: $(TEST_STAMP)
	$(BIN)/python -m sdjax.train.builtin.training --folder runs/builtin $(ARGS)

# Checks style, spelling, who imports whom, and types. The last two need the four folders as one package, as an
# installation has them: a tree of links in build/lint
lint: $(TEST_STAMP) lint-tree
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/codespell *.md docs sdjax convert configs scripts benchmarks
	bin=$$(cd $(BIN) && pwd) && cd build/lint && "$$bin/lint-imports" ../../pyproject.toml --cache-dir ../import-linter
	bin=$$(cd $(BIN) && pwd) && cd build/lint && "$$bin/mypy" --config-file ../../pyproject.toml --cache-dir ../mypy

lint-tree:
	@rm -rf build/lint && mkdir -p build/lint/sdjax
	@cd build/lint/sdjax && ln -s ../../../sdjax/* ../../../configs ../../../convert ../../../scripts .

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
