# The project's commands; `make` lists them. A fresh machine needs make and Python >= 3.11, nothing else: every command
# that needs the environment makes it first.

VENV ?= .venv
PY := $(VENV)/bin/python
# The checkout's own path is part of the mark, because an editable install of a copied tree would run the original.
READY := $(VENV)/.ready-$(firstword $(shell echo '$(CURDIR)' | cksum))

# Test processes: one a core, four at most; they share one PostgreSQL server. JOBS=0 runs in one process.
JOBS ?= logical
PYTEST_ARGS ?=
# Options of the benchmarks; --help lists them.
BENCH_ARGS ?=
# Non-empty: measure branch coverage of the package while testing.
COVERAGE ?=
COVERAGE_MINIMUM := 95
# Non-empty: a part of the tree that does not exist fails its command, instead of being named and passed by.
STRICT ?=
# The oldest SQLAlchemy that pyproject.toml allows.
SQLALCHEMY20 ?= 2.0.40

PYTEST = -m pytest -n $(JOBS) --maxprocesses 4 $(PYTEST_ARGS)
TYPED = $(wildcard benchmarks cascade_state scripts tests)
# $(call when,PATH,COMMAND): run COMMAND if PATH exists.
when = @if [ -e $(1) ]; then echo '$(2)'; $(2); else echo 'make $@: there is no $(1)'; [ -z '$(STRICT)' ]; fi

# Their advertisements.
export NO_MKDOCS_2_WARNING := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
# The steps share one environment, one set of coverage files and two cores.
.NOTPARALLEL:
.PHONY: help venv demo test check format lint types generate generated coverage docs bench bench-peers matrix \
        check-sqlalchemy20 check-postgres16 constraints clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(READY) ## Make the environment (.venv), or renew it after a change of its requirements

$(READY): pyproject.toml constraints.txt scripts/make-environment
	@scripts/make-environment $(VENV)
	@touch $@

demo: venv ## Run the example engine on an embedded PostgreSQL
	$(call when,cascade_state/demo/__main__.py,$(PY) -m cascade_state.demo)

test: venv ## Run the tests on both back ends (PYTEST_ARGS="-k timers" for some)
	@rm -f .coverage .coverage.*
	$(call when,tests,$(PY) $(if $(COVERAGE),-m coverage run) $(PYTEST))

check: COVERAGE = yes
check: lint types generated test coverage docs ## Everything that must hold before a commit
	@echo 'make check: all good'

format: venv ## Format the code and mend what can be mended
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

lint: venv # Format, lint, imports between the rooms, spelling
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports
	$(PY) -m scripts.check_migrations
	$(PY) -m codespell_lib

types: venv # Two type checkers: the code as it is, and the public face as users see it
	$(PY) -m mypy $(TYPED)
	@# --verifytypes has no option for the environment: it asks the first Python on PATH.
	PATH="$(abspath $(VENV)/bin):$$PATH" pyright --verifytypes cascade_state --ignoreexternal

generate: venv ## Write the generated files again
	$(PY) -m scripts.generate

generated: venv # Are the generated files up to date?
	$(PY) -m scripts.generate --check

coverage: venv # Report what the last `make test COVERAGE=yes` measured
	$(call when,tests,$(PY) -m coverage combine --quiet && $(PY) -m coverage report --fail-under $(COVERAGE_MINIMUM))

docs: venv ## Build the documentation into site/
	$(PY) -m mkdocs build --strict --quiet

bench: venv ## Measure against bare asyncpg and a plain ORM unit of work (BENCH_ARGS="--quick --only get")
	$(call when,benchmarks/__main__.py,$(PY) -m benchmarks $(BENCH_ARGS))
	$(if $(filter --only --list --compare,$(BENCH_ARGS)),,$(call when,benchmarks/databases/__main__.py,$(PY) -m benchmarks.databases $(filter --quick --json,$(BENCH_ARGS))))
	$(if $(filter --only --list --compare,$(BENCH_ARGS)),,$(call when,benchmarks/coordination/__main__.py,$(PY) -m benchmarks.coordination $(filter --quick --json,$(BENCH_ARGS))))

bench-peers: ## Measure against other libraries, installed into an environment of their own (BENCH_ARGS="--quick")
	@scripts/make-peers-environment .venvs/peers
	.venvs/peers/bin/python -m benchmarks.peers $(BENCH_ARGS)

matrix: venv ## Test on the other Pythons found here, PostgreSQL 16 and SQLAlchemy 2.0
	$(PY) -m scripts.matrix $(SQLALCHEMY20) -- $(PYTEST)

check-sqlalchemy20: ## Test on the oldest SQLAlchemy allowed
	@scripts/make-environment .venvs/sqlalchemy-$(SQLALCHEMY20) '' sqlalchemy==$(SQLALCHEMY20)
	$(call when,tests,.venvs/sqlalchemy-$(SQLALCHEMY20)/bin/python $(PYTEST))

check-postgres16: venv ## Test on PostgreSQL 16 from the wheel
	$(call when,tests,CASCADE_TEST_POSTGRES=16 $(PY) $(PYTEST))

constraints: ## Pin the newest versions that pyproject.toml allows
	@rm -rf .venvs/constraints
	@UNPINNED=yes scripts/make-environment .venvs/constraints
	@sed -n '/^#/p' constraints.txt > .venvs/constraints.txt
	@.venvs/constraints/bin/python -m pip freeze --exclude-editable >> .venvs/constraints.txt
	@mv .venvs/constraints.txt constraints.txt

clean: ## Remove the environments and everything that tools left behind
	rm -rf $(VENV) .venvs build dist site htmlcov .coverage .coverage.* \
	       .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
