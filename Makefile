# `make demo` and `make test` do the complete set-up on a new machine; a second call installs nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TESTS ?= tests

# Users install with pip; the test environments use uv, which takes a tenth of the time.
INSTALLER ?= pip
PIP := $(BIN)/python -m pip install
UV := $(PIP) --quiet uv && $(BIN)/uv pip install --system-certs --python $(BIN)/python
INSTALL := $(if $(filter uv,$(INSTALLER)),$(UV),$(PIP))

# Tests in which another release of a dependency can make a difference.
VERSION_TESTS := \
	tests/pipeline/test_demo.py \
	tests/teacher_cache/test_build.py tests/teacher_cache/test_export.py \
	tests/teacher_cache/store/test_cache_store.py tests/teacher_cache/store/test_zarr_versions.py \
	tests/teacher_cache/compat/test_compat.py tests/student_train/data/test_readers.py tests/test_startup.py \
	tests/student_train/training/test_loop.py tests/student_train/runs/test_folder.py \
	tests/student_train/interchange/test_onnx_tower.py tests/student_train/interchange/test_huggingface.py \
	tests/test_two_environments.py

.PHONY: demo test test-newest test-oldest faults fuzz coverage install browser clean

demo: install
	$(BIN)/rpp demo

# Everything that protects results and data; kills, other faults and hostile input in a short form.
test: install browser
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(TESTS)

# The newest Python on this machine, with the newest dependencies.
test-newest:
	python=$$(.ci/newest-python) && \
		$(MAKE) test VENV=.venv-newest PYTHON="$$python" INSTALLER=uv TESTS='$(VERSION_TESTS)'

# The lowest versions that pyproject.toml allows, of Python and of each dependency. Without the export to ONNX:
# torch 2.6 runs these towers but cannot export all of them, and reports it.
test-oldest:
	mkdir -p .venv-oldest
	python3.11 tests/oldest_requirements.py > .venv-oldest/constraints.txt
	UV_CONSTRAINT=.venv-oldest/constraints.txt \
		$(MAKE) test VENV=.venv-oldest PYTHON=python3.11 INSTALLER=uv \
		TESTS='$(filter-out tests/student_train/interchange/test_onnx_tower.py,$(VERSION_TESTS))'

# Hundreds of kills and other faults, and a table of the results; half an hour.
faults: install
	RPP_KILLS=100 RPP_FAULTS_TABLE=faults.md $(BIN)/python -m pytest tests/faults --timeout 3600 -o faulthandler_timeout=3700

# New damaged files for all code that reads files, and how many of each kind were tried.
RPP_FUZZ_SECONDS ?= 600
fuzz: install
	RPP_FUZZ_SECONDS=$(RPP_FUZZ_SECONDS) $(BIN)/python -m pytest tests/hostile -m fuzz -o faulthandler_timeout=0

# The suite with coverage, subprocesses included; slower.
coverage: install browser
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses auto --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name one with make PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --quiet uninstall --yes rpp 2>/dev/null  # the name before rpp-clip: it owns the commands
	$(INSTALL) --editable '.[dev]'
	touch $@

# The report is tested in a real browser. Without one these tests fail and explain how to deselect them.
browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && apt-get install --yes --no-install-recommends chromium; \
	else echo 'no chromium here, and no right to install it: the tests in a browser will fail' >&2; fi

clean:
	rm -rf .venv .venv-newest .venv-oldest rpp-demo
