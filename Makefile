# Needs only git, make and Python 3.11 or newer. Everything else goes into .venv, pinned.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ENV    := PATH="$(CURDIR)/$(BIN):$$PATH"
PIP    := $(BIN)/python -m pip --disable-pip-version-check
RUN    := $(VENV)/.installed-run
TEST   := $(VENV)/.installed-test

DATA    ?= .sluice/serve
PORT    ?= 8080
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
JOBS    ?= 2
ARGS    ?=

# What runs pipelines, and is run a second time with every sandbox dropped at every await.
ASLEEP := tests/unit/worker $(patsubst %,tests/integration/test_%.py,worker_real control children \
          asked_runs restart_from_step playground app hibernation)

# What a git client does, which is also tried with a newer one.
NEWER_GIT := $(VENV)/newer-git
CLIENT    := $(patsubst %,tests/integration/test_git_%.py,access fetch index modules protocol push)

.DEFAULT_GOAL := help
.PHONY: help demo serve test check format bench pins clean chromium

help:  ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(RUN)  ## push an example repository, watch its run, approve it (AUTO=1: unattended; PORT=N)
	@$(ENV) sluice demo $(if $(filter-out 0,$(AUTO)),--auto) $(if $(filter command line environment,$(origin PORT)),--port $(PORT)) $(ARGS)

serve: $(RUN)  ## run the server on http://127.0.0.1:8080 (DATA=DIR PORT=N WORKERS=N)
	@$(ENV) sluice --data $(DATA) serve --port $(PORT) --workers $(WORKERS) $(ARGS)

test: $(TEST) chromium  ## the whole test suite, with all it needs (JOBS=2 ARGS="-k word")
	@$(ENV) python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)
	@$(if $(ARGS),,$(ENV) python -m pytest -q -n $(JOBS) --hibernate=always $(ASLEEP))
	@$(if $(ARGS),,newer=$$($(BIN)/python -m tests.newer_git $(NEWER_GIT)); [ -z "$$newer" ] || { \
	  echo "once more with $$($$newer/git version):"; \
	  PATH="$$newer:$(CURDIR)/$(BIN):$$PATH" python -m pytest -q -n $(JOBS) $(CLIENT); })

check: $(TEST)  ## format, lint, types, tidy and the fast tests: under a minute
	@$(ENV) ruff format --check .
	@$(ENV) ruff check .
	@$(ENV) mypy
	@$(ENV) python -m pytest -q -n $(JOBS) -m "not slow" tests/unit tests/test_*.py $(ARGS)

format: $(TEST)  ## let ruff format and mend what it can
	@$(ENV) ruff format .
	@$(ENV) ruff check --fix .

bench: $(TEST)  ## measure against the bars and beside peers (ARGS="load waiting --json FILE")
	@$(ENV) python -m bench $(ARGS)

pins: $(RUN)  ## rewrite constraints.txt with the newest versions and their hashes
	@$(PYTHON) -m venv $(VENV)/pins && $(VENV)/pins/bin/pip install --quiet uv
	@uv="$(VENV)/pins/bin/uv pip compile pyproject.toml --quiet --group build --upgrade --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header"; \
	$$uv --output-file $(VENV)/pins/run.txt && $$uv --extra test --output-file $(VENV)/pins/all.txt
	@{ sed -n '/^#/p; /^[^#]/q' constraints.txt; echo; cat $(VENV)/pins/run.txt; \
	  printf '\n# --- tests only\n\n'; \
	  awk 'NR == FNR { seen[$$1]; next } /^[^ ]/ { skip = $$1 in seen } !skip' \
	    $(VENV)/pins/run.txt $(VENV)/pins/all.txt; } > $(VENV)/pins/constraints.txt
	@mv $(VENV)/pins/constraints.txt constraints.txt

clean:  ## remove the environment and all local state (the sandbox cache stays)
	rm -rf $(VENV) .sluice .pytest_cache .mypy_cache .ruff_cache .hypothesis

# --- what the targets above stand on ------------------------------------------------------------

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "sluice needs Python 3.11 or newer as '$(PYTHON)'; name another with make PYTHON=..." >&2; \
	  exit 2; }
	@echo "creating $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  rm -rf $(VENV); exit 2; }

# Everything comes from constraints.txt with its hash checked; the project itself is built last,
# without network, by the build back end that is pinned there too.
$(RUN): constraints.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing what sluice needs, pinned by constraints.txt (a minute, once)" >&2
	@sed '/^# --- tests only/,$$d' constraints.txt > $(VENV)/run.txt
	@$(PIP) install --quiet --require-hashes -r $(VENV)/run.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --no-index --editable .
	@$(BIN)/python -m compileall -q ci_platform git_store pipelines web
	@touch $@

$(TEST): $(RUN)
	@echo "installing what the tests need (once)" >&2
	@$(PIP) install --quiet --require-hashes -r constraints.txt
	@touch $@

# The browser tests drive Debian's chromium: it is the one thing that no Python package holds.
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing chromium for the browser tests (once)" >&2; \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null; \
	  else \
	    echo "the browser tests need chromium: sudo apt-get install chromium" >&2; exit 2; \
	  fi; }
