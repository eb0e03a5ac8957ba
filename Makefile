# `make demo` and `make test` are all the set-up there is; both prepare what they need themselves.

PY := .venv/bin/python
ARGS ?=
# RABBITMQ=4.0 or 4.3: that one, unpacked in .run, instead of the one that is installed; of the tests those marked `broker`.
RABBITMQ ?=
broker = $(if $(RABBITMQ),bin="$$(scripts/unpack-rabbitmq $(RABBITMQ))" && MAILQ_RABBITMQ_BIN="$$bin")

# All tests run in parallel processes, each with servers of its own. What ARGS names of `tests/` runs in one process.
JOBS ?= 4
parallel := -n $(JOBS) --dist loadgroup --no-loadscope-reorder

# Tests start hundreds of interpreters, which would each compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo run test coverage check bench torture fuzz schemas reference docs clean

help:  ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo "  ARGS='...' is passed on to demo, run, test, bench, torture and fuzz."

demo:  ## See it work: private broker, receiving server, worker; ends by itself
	@scripts/setup demo
	@$(broker) $(PY) -m mailq demo $(ARGS)

run:  ## Deliver in the foreground (ARGS='--config mailq.toml -p 1')
	@scripts/setup
	@exec $(PY) -m mailq run $(ARGS)

test:  ## Run every test, with the real servers they need (ARGS='tests/core -x', RABBITMQ=4.3)
	@scripts/setup test
	@$(broker) $(PY) -m pytest $(if $(RABBITMQ),-m broker) $(if $(findstring tests/,$(ARGS)),,$(parallel)) $(ARGS)

coverage:  ## Measure which branches of mailq/core its own tests take; 95 % at least
	@scripts/setup test
	@COVERAGE_FILE=.run/coverage $(PY) -m pytest tests/core -q --cov=mailq.core --cov-branch --cov-report=term:skip-covered --cov-fail-under=95 $(ARGS)

check:  ## Format, lint, types, layers
	@scripts/setup
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-logo

bench:  ## Measure it, also against Postfix (ARGS='--vs postfix', see bench/README.md)
	@scripts/setup test
	@$(PY) -m bench $(ARGS)

torture:  ## Kill, cut and stall it while it delivers, then count (ARGS='--disasters 200 --seed 7')
	@scripts/setup test
	@$(broker) $(PY) -m mailq torture $(ARGS)

fuzz:  ## Fuzz a parser, led by coverage (ARGS='reply -max_total_time=180', see fuzz/README.md)
	@scripts/setup test
	@$(PY) -c 'import atheris' 2>/dev/null || { echo "fuzz: atheris is missing: .venv/bin/pip install atheris" >&2; exit 1; }
	@$(PY) -m fuzz $(ARGS)

schemas:  ## Make etc/mailq.toml, schemas/*.json and docs/reference/tolerance.md anew
	@scripts/setup
	@$(PY) -m mailq example-config > etc/mailq.toml.new && mv etc/mailq.toml.new etc/mailq.toml
	@$(PY) -m mailq schemas --out schemas
	@$(PY) -c "from mailq.core.jobs.tolerance import as_markdown; print(as_markdown(), end='')" > docs/reference/tolerance.md

reference:  ## Make the generated pages of docs/reference and the README's picture anew
	@scripts/setup
	@PYTHONPATH=. $(PY) scripts/reference.py

docs:  ## Build the documents as a site with search, in .run/site
	@scripts/setup
	@$(PY) -c 'import zensical' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@.venv/bin/zensical build --clean

clean:  ## Remove everything that is made: .venv, .run, caches
	rm -rf .venv .run .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
