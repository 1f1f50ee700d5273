# make demo   set up, train on the embedded data set with pruning, attack, and show what was dropped
# make test   set up, lint, and run the tests (under 12 minutes on 2 cores)

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test lint clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.ready
	$(RUN) train.py --dataset digits --prune high --p 0.4 --epoch 3 --out $(DEMO)
	$(RUN) evaluate.py $(DEMO) --attack autoattack --n 100
	@echo "what was dropped: $(DEMO)/pruned.png"

test: $(VENV)/.ready lint
	$(RUN) -m pytest

lint: $(VENV)/.ready
	$(RUN) -m ruff check .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
