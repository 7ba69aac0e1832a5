# make demo | make test | make lint types. Everything is installed into .venv by the targets themselves.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check -q

MODEL ?= llama-8m-novels

.PHONY: demo test lint types clean experiments

demo: $(VENV)/.installed
	$(VENV)/bin/edgeqat quantize --model demo --w4a8kv4 --output demo-w4a8kv4 --overwrite
	$(VENV)/bin/edgeqat quantize --model demo --w3a4kv2 --output demo-w3a4kv2 --overwrite
	$(VENV)/bin/edgeqat generate demo-w4a8kv4 --prompt "The import statement" --max-tokens 40

test: $(VENV)/.installed-dev
	$(VENV)/bin/pytest

# The ablation of recipes/README.md, hours: EDGEQAT_DATA=FOLDER make experiments MODEL=FOLDER; may be stopped and started.
experiments: $(VENV)/.installed
	$(VENV)/bin/python eval/experiments.py $(MODEL)
	$(VENV)/bin/python eval/experiments.py --table

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev
	$(VENV)/bin/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --no-compile -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-w4a8kv4 demo-w3a4kv2
