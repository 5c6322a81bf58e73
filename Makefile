# `make demo` and `make test` do all set-up on a fresh machine; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test install clean

demo: install
	$(BIN)/rpp demo

test: install
	$(BIN)/python -m pytest

install: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name one with make PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv rpp-demo
