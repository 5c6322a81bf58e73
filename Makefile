# `make demo` and `make test` do all set-up on a fresh machine; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test faults fuzz coverage install browser clean

demo: install
	$(BIN)/rpp demo

# All that protects results and data; of kills, other faults and hostile input the short form.
test: install browser
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Hundreds of kills and other faults, and a table of what became of them; half an hour.
faults: install
	RPP_KILLS=100 RPP_FAULTS_TABLE=faults.md $(BIN)/python -m pytest tests/faults --timeout 3600

# Fresh damaged files for all that reads files, and how many of each kind were tried.
RPP_FUZZ_SECONDS ?= 600
fuzz: install
	RPP_FUZZ_SECONDS=$(RPP_FUZZ_SECONDS) $(BIN)/python -m pytest tests/hostile -m fuzz

# The suite once more, slower, with what it runs of the packages, subprocesses included.
coverage: install browser
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses auto --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

install: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name one with make PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

# The report is tested in a real browser; without one those tests fail, and say how to leave them out.
browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && apt-get install --yes --no-install-recommends chromium; \
	else echo 'no chromium here, and no right to install it: the tests in a browser will fail' >&2; fi

clean:
	rm -rf .venv rpp-demo
