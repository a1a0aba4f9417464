# Two commands set everything up on a fresh machine: `make run` and `make test`.
VENV ?= .venv
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
OUT ?= out/ml-100k
CODE := fl_peel clients strategies simulations tests .ci
BIN := $(VENV)/bin

# LOCKED=1: with the versions of requirements.lock (Linux, x86-64, Python 3.11)
LOCK := $(if $(LOCKED),requirements.lock)
INSTALLED := $(VENV)/.installed$(if $(LOCKED),-locked)


.PHONY: run test test-all test-rest hostile golden lint docs dist lock mutants clean

run: $(INSTALLED)
	$(BIN)/fl-peel run ml-100k --out $(OUT)
	@echo
	@echo "Look at the report:           $(OUT)/report.html"
	@echo "Activate the environment:     . $(BIN)/activate"
	@echo "Then, for example:            fl-peel run ml-100k --set refinement.rounds=20 --out out/longer"
	@echo "Your own data, step by step:  docs/tutorial.md"

# compiled Python is kept whatever the environment says: each of the many processes would compile torch and all of ours
export PYTHONDONTWRITEBYTECODE :=

PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder $(if $(DURATIONS),--durations=$(DURATIONS))
# a process more than there are processors, since tests of engines and of deployments also wait
ALL := --numprocesses 3 --hypothesis-profile=thorough

# what one wants to know while working, in minutes; DURATIONS=25 lists what takes longest, here and below
test: $(INSTALLED)-dev
	$(PYTEST) --numprocesses 2 -m "not slow"

# everything, and properties on all their examples
test-all: $(INSTALLED)-dev
	$(PYTEST) $(ALL) -m "not hostile"

# what `make test` leaves of `make test-all`
test-rest: $(INSTALLED)-dev
	$(PYTEST) $(ALL) -m "(slow or hypothesis) and not hostile"

# what is left out of `make test-all`: whole runs in which a node lies in every way that the tests know, runs that are
# ended again and again, and fifteen times as many damaged files and bad inputs
hostile: $(INSTALLED)-dev
	$(PYTEST) --numprocesses 2 --hypothesis-profile=hostile -m hostile

# figures to the last digit (CONTRIBUTING.md): as committed, or as of BASE=commit; RECORD=1 writes those to commit;
# DATA=folder: also the other data sets that lie there; SCENARIOS="ml-100k compare" for some
golden: $(INSTALLED)
	$(BIN)/python -m tests.golden $(if $(RECORD),--record) $(if $(BASE),--base $(BASE)) $(if $(DATA),--data-dir $(DATA)) \
	  $(if $(SCENARIOS),--only "$(SCENARIOS)")

lint: $(INSTALLED)-dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

# docs/messages.md, and the site of docs/ and of what is made from the code, into site/; a warning is an error
docs: $(INSTALLED)-docs
	$(BIN)/python .ci/site_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# what a release uploads: wheel and sdist in dist/, checked
dist: $(INSTALLED)-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

# CONTRIBUTING.md; MODULES="fl_peel.secure.*" for some of it
mutants: $(VENV)/.installed-dev
	$(BIN)/python .ci/mutants.py $(MODULES)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fl-peel needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# a stamp each: installing again only when the dependencies change
$(INSTALLED): pyproject.toml $(LOCK) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(if $(LOCK),--requirement $(LOCK)) --editable .
	touch $@

$(INSTALLED)-dev: pyproject.toml $(LOCK) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(if $(LOCK),--requirement $(LOCK)) --editable '.[dev]'
	touch $@ $(INSTALLED)

$(INSTALLED)-docs: pyproject.toml $(LOCK) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(if $(LOCK),--requirement $(LOCK)) --editable '.[docs]'
	touch $@ $(INSTALLED)

# versions that are in the file stay while pyproject.toml allows them: UPGRADE=--upgrade takes the newest
lock: $(BIN)/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --quiet $(UPGRADE) --output-file requirements.lock --no-annotate \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --index-strategy unsafe-best-match \
	  --extra-index-url https://download.pytorch.org/whl/cpu --emit-index-url --custom-compile-command "make lock" $(UV)

clean:
	rm -rf $(VENV) out site dist mutants .mypy_cache .ruff_cache .grimp_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
