# Two commands do everything: `make app` serves the page, `make test` checks the whole project.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: app test lint benchmark quality chromium llama clean

app: $(VENV)/.app
	$(BIN)/python app.py

# Everything at once: browser tests in two processes, each with one server; all others wherever a process is free.
# With --every-control the run also fails where no browser test has worked a control of the page.
test: lint chromium llama
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --every-control

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/.rival
	$(BIN)/python -m benchmarks.analysis
	$(BIN)/python -m benchmarks.scan
	PYTHONPATH=$(VENV)/rival $(BIN)/python -m benchmarks.live

# Perplexity of every method at three sizes: about an hour on two cores, and continued where it was stopped.
quality: $(VENV)/.dev
	$(BIN)/python -m benchmarks.quality

# The browser of the interface tests: Debian's, installed where it is missing and allowed.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
	  || { echo "chromium is missing: install it (Debian: apt-get install chromium) to run the browser tests" >&2; exit 1; }

# The llama.cpp in which the tests run exported files: a prebuilt one from npm; without npm those tests are skipped.
llama: $(VENV)/.dev
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(VENV)/.llama; \
	  else echo "npm is missing: install Node.js 20 or newer to run the tests of exported files" >&2; fi

$(VENV)/.llama:
	npm install --silent --no-audit --no-fund --prefix $(VENV)/llama node-llama-cpp@3.22.1
	touch $@

$(VENV)/.app: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.dev: $(VENV)/.app requirements-dev.txt requirements-lm-eval.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-lm-eval.txt
	touch $@

# The rival of benchmarks/live.py, apart from our own packages: it is measured, never depended on.
$(VENV)/.rival: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/rival optipfair==0.4.2
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
