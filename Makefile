# Every target sets up what it needs first; set-up is instant where nothing changed.
PYTHON ?= python3
SETUP := $(PYTHON) tools/setup.py
# Runs a command with the checkout's own Python, Pulumi engine, plugins and state.
WITH := settings="$$($(SETUP) env)" && eval "$$settings" &&

# The stack that preview, up-stack, drift and reap are about, and how strict its policies are.
STACK ?= dev
POLICY_CONFIG = $(wildcard policy/config.$(STACK).json)
# Where a real stack's state lies, as in s3://bucket?region=eu-west-3; left out: where PULUMI_BACKEND_URL says,
# and for dev in this checkout.
BACKEND ?=
ENV_OF_STACK = $(SETUP) env --stack '$(STACK)' $(if $(BACKEND),--backend '$(BACKEND)')
# The engine writes state and backups with the umask it is started with: they are for nobody else.
ON_STACK = umask 077 && settings="$$($(ENV_OF_STACK))" && eval "$$settings" &&
ON_DEV = umask 077 && settings="$$($(SETUP) env --stack dev)" && eval "$$settings" &&
POLICIES = --policy-pack policy $(if $(POLICY_CONFIG),--policy-pack-config $(POLICY_CONFIG))

# Built from its module by Go, once; it looks into the workflows' scripts with shellcheck.
ACTIONLINT = { command -v go >/dev/null || { echo >&2 'missing: Go, which builds actionlint; see go.dev/dl'; false; }; } \
	&& go -C tools/actionlint tool actionlint $(CURDIR)/.github/workflows/*.yml

.DEFAULT_GOAL := help
.PHONY: help setup env demo demo-vm demo-break demo-down test test-engine test-kills test-faults test-trials test-boot test-vm fuzz check schema format preview up-stack drift reap reap-jobs bench bench-boot clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the Python environment, the Pulumi engine and its plugins for this checkout
	@$(SETUP)

env: ## print shell settings for plain `pulumi`, to be evaluated by the shell; STACK=dev for the demo's stack
	@$(if $(filter file,$(origin STACK)),$(SETUP) env,$(ENV_OF_STACK)) && echo 'umask 077'

demo: ## create a GPU node on the embedded cloud, from `pulumi up` to ready
	@$(ON_DEV) python -m tools.demo up

demo-vm: ## the same with a virtual machine behind the server: a real first boot
	@$(ON_DEV) python -m tools.demo vm

demo-break: ## switch the demo's server off behind Pulumi's back
	@$(ON_DEV) python -m tools.demo break

demo-down: ## destroy the demo's node and stop the embedded cloud
	@$(ON_DEV) python -m tools.demo down

test: ## run every test but those that boot a virtual machine or vLLM, and the long rows of trials below
	@$(WITH) pytest -n 4 --dist worksteal -m "not vm and not kills and not faults and not trials and not real"

test-engine: ## run vLLM itself on this CPU, and hold the simulator and what is known of its arguments to it
	@$(WITH) python -m tools.vllm_cpu >/dev/null && pytest tests/real

test-kills: ## kill the engine at every moment of up, rollout, replacement and destroy
	@$(WITH) pytest -n 2 --dist worksteal tests/engine -k kill

test-faults: ## spoil, refuse, delay and lose every reply of every cloud, from creation to destroy
	@$(WITH) pytest -n 2 --dist worksteal tests/unit tests/engine -m faults

test-trials: ## every row of trials whole, of which `make test` runs some: a machine lost, replaced or renamed in every way
	@$(WITH) pytest -n 2 --dist worksteal tests/unit tests/engine -m "trials or kills or faults"

test-boot: ## boot a virtual machine for each cloud, from pulumi up to ready; judge every rendered user data
	@$(WITH) pytest tests/vm/test_rendered_variants.py tests/engine/test_boots.py

test-vm: ## run all the tests that boot virtual machines
	@$(WITH) pytest -m vm

fuzz: ## check 20,000 stack files that were spoilt at random: not one may end in a traceback
	@$(WITH) FUZZED_FILES=20000 pytest -n 2 tests/unit/test_mutated_stack_files.py

check: ## lint, types, shell scripts, generated files
	@$(WITH) ruff check . && ruff format --check . && mypy \
		&& git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck --severity=style \
		&& python -m tools.schema --check && $(ACTIONLINT)

schema: ## write docs/stack.schema.json, by which editors complete and check stack files
	@$(WITH) python -m tools.schema

format: ## rewrite the Python files in the project's format
	@$(WITH) ruff format . && ruff check --fix-only .

preview: ## what an update of STACK would do, with policies, fit and cost; COMMENT=file
	@$(ON_STACK) fleet preview --stack $(STACK) $(if $(COMMENT),--comment $(COMMENT))

up-stack: ## bring STACK up, unattended, with its policies
	@$(ON_STACK) pulumi up --yes --stack $(STACK) $(POLICIES)

drift: ## where clouds and nodes of STACK differ from its state; REPORT=file, SEEN=file for what is new alone
	@$(ON_STACK) fleet drift --stack $(STACK) $(if $(REPORT),--markdown $(REPORT)) $(if $(SEEN),--seen $(SEEN))

reap: ## destroy the nodes of STACK that have outlived their ttl_hours
	@$(ON_STACK) fleet reap --stack $(STACK) --yes

reap-jobs: ## end the GPU jobs in AWS region REGION that have outlived their deadlines
	@$(WITH) fleet job reap --region $(REGION) --yes

recording: ## draw docs/images/fleet-up.svg from a real run on ten light nodes
	@$(WITH) python -m tools.recording

bench: ## measure the engine's share of preview and up, into bench/results.json
	@$(WITH) python -m tools.bench

bench-boot: ## measure first boots of virtual machines: 45 minutes on a quiet machine
	@$(WITH) python -m tools.bench first_boot

clean: ## remove what set-up, tests and the demo left in this checkout (stacks' state and the shared cache stay)
	@rm -rf .venv .mypy_cache .ruff_cache .hypothesis
	@if [ -d .fleet ]; then find .fleet -mindepth 1 -maxdepth 1 ! -name state -exec rm -rf {} +; fi
