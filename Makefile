# make demo    set up .venv and run the demo
# make test    the whole test suite, in the same environment
# make lint    ruff and mypy
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-actors test-ray test-rest test-fast lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m bertvision_stream.run task=demo

# Three processes at once: tests with Ray wait much, in two clusters; the rest fills the gaps.
test: $(VENV)/.demo $(VENV)/.test
	$(MAKE) --no-print-directory --jobs=3 --output-sync=none test-actors test-ray test-rest

test-actors:
	$(BIN)/python -m pytest -m ray tests/actors tests/tune

test-ray:
	$(BIN)/python -m pytest -m ray --ignore=tests/actors --ignore=tests/tune

test-rest:
	nice $(BIN)/python -m pytest -m "not ray"

# Without Ray and without training: seconds.
test-fast: $(VENV)/.demo $(VENV)/.test
	$(BIN)/python -m pytest -m "not ray and not slow"

lint: $(VENV)/.demo $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.venv pyproject.toml constraints.txt
	@echo "installing the project into $(VENV) (torch and Ray are large: some minutes) ..."
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.demo pyproject.toml constraints.txt
	$(PIP) --editable '.[demo,test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
