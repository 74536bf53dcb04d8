# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test models lint check-types unit bench clean

demo: models
	$(BIN)/overread demo --out demo

# make answers 2 for whatever failed; .ci/run wants pytest's own answer. In the order of their names the long files,
# of whole services, come first, and no worker is left alone with one at the end.
test: models lint check-types
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder; code=$$?; echo $$code > $(VENV)/pytest-exit-code; exit $$code

models: $(STAMP)
	$(BIN)/overread models install --missing

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

check-types: $(STAMP)
	$(BIN)/mypy
	for script in models/*/build.py; do $(BIN)/mypy $${script%/*} || exit 1; done

bench: models
	$(BIN)/python -m pytest tests/bench -s --override-ini python_files='bench_*.py'

# The environment, made anew when the dependencies change.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo models/*/1
