# Two commands: `make demo` runs the main job on the sample scenes, `make test` checks everything.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test weights clean

demo: $(VENV)/base.stamp
	$(BIN)/alidade demo

test: $(VENV)/dev.stamp
	$(BIN)/ruff check src tests scripts recipes
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadgroup -q

# Repeats the training run behind the shipped weights (about an hour on two cores): make weights DATA=path-of-the-pack
weights: $(VENV)/dev.stamp
	$(BIN)/python recipes/alidade_tiny.py --data $(DATA)

# torch comes first and pinned, so that no later requirement can pull another build of it.
$(VENV)/torch.stamp: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	touch $@

$(VENV)/base.stamp: $(VENV)/torch.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
