# Everything starts here: `make demo` and `make test` work on a fresh machine that has git and make.
PYTHON := .venv/bin/python
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup test-packages demo test test-quick test-slow test-svm test-svm-smoke test-lab lint bench build lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing (Python, QEMU, .venv); a second run does nothing
	@scripts/setup

demo: setup ## the table: the same work by every technique this host can do, and an HTML report
	@mkdir -p report
	@.venv/bin/vtk compare --quick --html report/compare.html --json report/compare.json; status=$$?; \
	if [ -s report/compare.html ]; then echo "report: $(CURDIR)/report/compare.html (data: compare.json beside it)"; fi; \
	exit $$status

test: setup lint ## lint, types and the whole test suite
	$(PYTHON) -m pytest -m "not slow" $(PYTEST_ARGS)

test-packages: ## install the programs of others that some tests compare with, and are skipped without
	@scripts/test-packages

test-quick: setup ## the tests that need neither QEMU nor minutes
	$(PYTHON) -m pytest -q -m "not slow and not qemu" $(PYTEST_ARGS)

test-slow: setup ## the tests that take minutes each
	$(PYTHON) -m pytest -m slow $(PYTEST_ARGS)

test-svm: setup ## the tests that need KVM, on an emulated AMD SVM host (QEMU TCG; slow)
	$(PYTHON) -m tests.svm $(PYTEST_ARGS)

test-svm-smoke: setup ## a few of those, within about five minutes
	$(PYTHON) -m tests.svm --smoke $(PYTEST_ARGS)

build/ansible/installed: ansible/requirements.txt
	$(PYTHON) -m venv build/ansible
	build/ansible/bin/pip install -q -r ansible/requirements.txt
	@touch $@

test-lab: setup build/ansible/installed ## the playbook on a Debian machine of vtk vm, twice (an hour of emulation)
	@.venv/bin/vtk image build debian
	PATH="$$PATH:$(CURDIR)/build/ansible/bin" $(PYTHON) -m pytest tests/ansible $(PYTEST_ARGS)

lint: setup ## ruff, formatting and types
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

bench: setup ## the speed figures, as ratios measured in one run
	.venv/bin/vtk bench

build: setup ## a wheel with the guests built in, in dist/
	$(PYTHON) -m hatchling build -t wheel

lock: setup ## pin the dependencies anew (UPGRADE=1: to their newest versions)
	UPGRADE=$(UPGRADE) scripts/lock

clean: ## remove what was built; keeps .venv
	rm -rf build dist report guest_os/build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
