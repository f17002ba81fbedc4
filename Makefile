# Run Records. Everything here starts from Python 3.11+, make and git; `make install` brings the rest.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BENCH := .venv-bench/bin
BENCH_INSTALLED := .venv-bench/.installed
# A worker that is done takes what another has not begun: the long tests stand in a few files.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install browser demo run test soak check lint types layers audit licences screenshots bench lock clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 12

install: $(INSTALLED) ## make .venv with the pinned dependencies

$(INSTALLED): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Run Records needs Python 3.11 or newer; this is %d.%d. Try: make PYTHON=python3.12 install" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(INSTALLED)

demo: install ## run the main job end to end against the sandbox, print what landed, and end
	$(BIN)/python -m app demo

run: install ## serve against the sandbox until you stop it
	$(BIN)/python -m app serve --sandbox

test: install browser ## run every test but the long ones
	$(PYTEST)

# A part may hold properties only, which come second: 5 is how pytest says that there was none to run.
soak: install ## run the long tests: what the figures of docs/reliability.md come from
	$(PYTEST) -m soak --timeout 7200 $(TESTS) || test $$? -eq 5
	properties=$$(grep -rl hypothesis --include='test_*.py' $(or $(TESTS),tests)); \
	test -z "$$properties" || $(PYTEST) --hypothesis-profile soak --timeout 7200 $$properties

check: install lint types layers audit test ## lint, types, layering, known vulnerabilities and tests

# The browser tests are skipped where Chromium cannot be had, and fail there if CI is set.
browser: ## install Chromium for the browser tests, where it is missing and we may
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { as_root=$$(test "$$(id -u)" = 0 || echo "sudo -n"); \
	     $$as_root apt-get update -qq && $$as_root apt-get install -y -qq --no-install-recommends chromium; } \
	|| echo "No Chromium, and it could not be installed: the browser tests are skipped."

screenshots: install browser ## make the pictures of the page in docs/ from the demo's job
	$(BIN)/python -m tests.screenshots

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

bench: $(BENCH_INSTALLED) ## measure, and write docs/performance.md (ARGS='--only ingest --quick' for a short look)
	$(BENCH)/python -m tests.bench $(ARGS)

# What the benchmarks compare with stays out of .venv.
$(BENCH_INSTALLED): requirements-bench.lock
	test -x $(BENCH)/python || $(PYTHON) -m venv .venv-bench
	$(BENCH)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-bench.lock
	@touch $(BENCH_INSTALLED)

audit: install ## ask whether a vulnerability is known of a dependency, where that can be asked
	@$(BIN)/python -m tests.audit

licences: install ## write docs/licences.md
	$(BIN)/python -m tests.licences

lock: install ## pin the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 --group dev -c requirements.lock -o requirements-dev.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 --group dev --group bench -c requirements-dev.lock -o requirements-bench.lock pyproject.toml

clean: ## remove what the targets made (not your data)
	rm -rf .venv .venv-bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
