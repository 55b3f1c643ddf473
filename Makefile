# make setup   the virtual environment with everything the app needs
# make serve   setup, then MONAI Label with the sample scans (STUDIES=... HOST=... PORT=... MODELS=...)
# make test    setup, then the quick tests in two processes (TEST_WORKERS=...);  make test-real: the slow ones and those with Orthanc and Chromium
# make lint    ruff;  make format: ruff's layout of the source
# make weights rebuilds model_weights/ from the data folder (DATA=...);  make benchmark: seconds of one scan (SCAN=...)
# make page    builds the page /anomaly/ anew from lib/page/src into lib/page/dist (needs Node 20 and npm; the build is part of the repository)
# make lock    writes requirements.lock anew (LOCK_ARGS=--upgrade: the newest of what requirements.txt leaves open)
# make audit   asks PyPI for known vulnerabilities of everything that is locked; make licences, make sbom: docs/licences.md, SBOM
# make wheelhouse  everything that an offline machine needs, into WHEELHOUSE=...
# make doctor  examines the installation;  make clean: removes the environment
# Every path is quoted and every tool is called through $(PY) -m, so that a folder with a space in its name works.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
PY := $(VENV)/bin/python
STUDIES ?= tests/data/studies
HOST ?= 127.0.0.1
PORT ?= 8000
MODELS ?= all
DATA ?= ../shared/data
SCAN ?= tests/data/studies/ixi_lesion.nii.gz
PYTEST_ARGS ?=
TEST_WORKERS ?= 2

WHEELHOUSE ?= wheelhouse

REQUIREMENTS := requirements.txt requirements-nodeps.txt requirements.lock .ci/setup monailabel_app/pipelines/launcher.py
SETUP := $(VENV)/.setup-done
SETUP_DEV := $(VENV)/.setup-dev-done
# Tools that read the locks and write about them; not part of what runs.
TOOLS := $(VENV)/tools
TOOLS_PY := $(TOOLS)/bin/python

.PHONY: help setup setup-dev serve doctor test test-real test-all lint format weights benchmark page lock audit licences sbom wheelhouse clean

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(SETUP)
setup-dev: $(SETUP_DEV)

$(SETUP): $(REQUIREMENTS)
	.ci/setup "$(VENV)" runtime
	@touch "$@"

$(SETUP_DEV): $(SETUP) requirements-dev.txt
	.ci/setup "$(VENV)" dev
	@touch "$@"

serve: $(SETUP)
	@"$(PY)" main.py serve --studies "$(STUDIES)" --host "$(HOST)" --port "$(PORT)" --models "$(MODELS)"

doctor: $(SETUP)
	"$(PY)" main.py doctor --host "$(HOST)" --port "$(PORT)"

# One thread each: more would only wait for one another.
test: $(SETUP_DEV)
	OMP_NUM_THREADS=1 "$(PY)" -m pytest -n "$(TEST_WORKERS)" --dist loadfile $(PYTEST_ARGS)

test-real: $(SETUP_DEV)
	"$(PY)" -m pytest -m "slow or orthanc or browser" $(PYTEST_ARGS)

test-all: test test-real

lint: $(SETUP_DEV)
	"$(PY)" -m ruff check .

format: $(SETUP_DEV)
	"$(PY)" -m ruff format .

weights: $(SETUP)
	"$(PY)" main.py weights rebuild --data "$(DATA)"

benchmark: $(SETUP)
	"$(PY)" tests/benchmarks/prediction_speed.py "$(SCAN)"

page:
	cd lib/page && npm ci --ignore-scripts --no-audit --no-fund && npm run build

$(TOOLS)/.done: .ci/requirements-tools.txt $(SETUP)
	"$(PY)" -m venv "$(TOOLS)"
	"$(TOOLS_PY)" -m pip install --disable-pip-version-check -q -r .ci/requirements-tools.txt
	@touch "$@"

lock: $(TOOLS)/.done
	"$(TOOLS_PY)" .ci/lock.py $(LOCK_ARGS)

# --strict: a package that could not be looked up is an error, not a pass.
audit: $(TOOLS)/.done
	"$(TOOLS_PY)" -m pip_audit --strict --disable-pip --require-hashes -r requirements.lock -r requirements-cuda.lock $(AUDIT_ARGS)

# Of what is installed from the lock: the licences are read there.
licences: $(SETUP)
	"$(PY)" .ci/licences.py

sbom: $(SETUP) $(TOOLS)/.done
	"$(PY)" .ci/sbom.py
	"$(TOOLS_PY)" .ci/sbom.py --check

wheelhouse: $(SETUP)
	.ci/wheelhouse "$(VENV)" "$(WHEELHOUSE)"

clean:
	rm -rf "$(VENV)" .pytest_cache .ruff_cache
