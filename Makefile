# make run ARGS='...': sets up .venv and runs `sdjax txt2img` with ARGS; without them it shows the flags.
# make test: sets up .venv and runs the default tests. make test-all: the slow ones and the comparisons with PyTorch too.
# make train-builtin: trains the built-in model in runs/builtin, going on where the last run stopped (docs/built-in-model.md).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: run test test-all train-builtin lint clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "sdjax needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

run: $(STAMP)
	$(BIN)/sdjax txt2img $(or $(ARGS),--help)

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-all: $(STAMP) lint
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,compare]'
	$(BIN)/python -m pytest -n 2 -m 'not gpu' $(ARGS)

train-builtin: $(STAMP)
	$(BIN)/python -m sdjax.train.builtin --folder runs/builtin $(ARGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info
