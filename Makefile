# Every target sets up what it needs first; set-up is instant where nothing changed.
PYTHON ?= python3
SETUP := $(PYTHON) tools/setup.py
# Runs a command with the checkout's own Python, Pulumi engine, plugins and state.
WITH := settings="$$($(SETUP) env)" && eval "$$settings" &&

.DEFAULT_GOAL := help
.PHONY: help setup env demo demo-down test test-vm check schema format bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the Python environment, the Pulumi engine and its plugins for this checkout
	@$(SETUP)

env: ## print shell settings for plain `pulumi`, to be evaluated by the shell
	@$(SETUP) env

demo: ## create a GPU node on the embedded cloud, from `pulumi up` to ready
	@$(WITH) python -m tools.demo up

demo-down: ## destroy the demo's node and stop the embedded cloud
	@$(WITH) python -m tools.demo down

test: ## run every test but those that boot a virtual machine
	@$(WITH) pytest -n 2 -m "not vm"

test-vm: ## run the tests that boot virtual machines
	@$(WITH) pytest -m vm

check: ## lint, types, shell scripts, generated files
	@$(WITH) ruff check . && ruff format --check . && mypy \
		&& git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck --severity=style \
		&& python -m tools.schema --check

schema: ## write docs/stack.schema.json, by which editors complete and check stack files
	@$(WITH) python -m tools.schema

format: ## rewrite the Python files in the project's format
	@$(WITH) ruff format . && ruff check --fix-only .

bench: ## measure the engine's share of preview and up, into bench/results.json
	@$(WITH) python -m tools.bench

clean: ## remove what set-up, tests and the demo left in this checkout (the shared cache stays)
	@rm -rf .venv .fleet .mypy_cache .ruff_cache .hypothesis
