# Two commands matter: `make serve` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The one version that is tested; plain `torch` may bring gigabytes of CUDA to a machine without a GPU.
TORCH  := torch==2.13.0

.PHONY: serve test test-clients check lint type clean

serve: $(VENV)/installed
	$(BIN)/qnext serve $(ARGS)

# Two at a time, each file by one of them: ARGS="-n 0" runs one after the other.
test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Third-party clients, each in an environment of its own below the user's cache folder: about 1.5 GB, once.
test-clients: $(VENV)/installed-test
	$(BIN)/python -m tests.clients.run $(ARGS)

check: lint type test

lint: $(VENV)/installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(VENV)/installed-lint
	$(BIN)/mypy

$(VENV)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qnext needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	touch $@

$(VENV)/installed: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/installed-lint: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
