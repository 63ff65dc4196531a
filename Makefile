# Everything that a person does with a clone. `make help` lists it.

SHELL := /bin/bash
PYTHON := .venv/bin/python
# Root's machines do not lie among the user's, who could not use that folder any more.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E XDG_RUNTIME_DIR=)
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup image boot cluster test test-faults test-cluster lint bench lock fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what this machine lacks (Debian packages, Python packages, native extension)
	@command -v python3 >/dev/null || { $(SUDO) apt-get -qq update && $(SUDO) apt-get -qq install -y python3; }
	@python3 rootfs/host.py

image: setup ## build kernel, initramfs and disk into the cache and print where they are
	@$(PYTHON) -m rootfs image

boot: setup ## boot a node in QEMU and watch it; Ctrl-C powers it off
	@$(PYTHON) -m rootfs image >/dev/null
	@$(PYTHON) -m qemu boot --live $(ARGS)

cluster: setup ## start a Kubernetes control plane and two nodes that join it; Ctrl-C ends all
	@$(PYTHON) -m rootfs image >/dev/null
	@$(PYTHON) -m qemu cluster $(ARGS)

# The machines of the one and the nodes of the other would starve each other. 5: ARGS chose none, which is an error only
# if it is so of both.
test: setup ## run linters, unit, namespace and VM tests, and the short ones of a cluster
	@$(PYTHON) -m rootfs image >/dev/null
	@$(PYTHON) -m rootfs cluster >/dev/null
	@$(SUDO) $(PYTHON) -m pytest tests/unit tests/namespace tests/vm $(ARGS); first=$$?; \
	[ $$first = 0 ] || [ $$first = 5 ] || exit $$first; \
	$(SUDO) $(PYTHON) -m pytest tests/cluster $(ARGS); second=$$?; \
	[ $$second = 5 ] && exit $$first || exit $$second

test-faults: setup ## run every row of the table of faults in VMs, the long ones too
	@$(PYTHON) -m rootfs image >/dev/null
	@$(SUDO) $(PYTHON) -m pytest tests/vm/test_faults.py -m "faults or not faults" $(ARGS)

test-cluster: setup ## run every test of a real cluster with two nodes, the long ones too
	@$(PYTHON) -m rootfs image >/dev/null
	@$(PYTHON) -m rootfs cluster >/dev/null
	@$(PYTHON) -m rootfs conformance >/dev/null
	@$(SUDO) $(PYTHON) -m pytest tests/cluster -m "not conformance" $(ARGS)

lint: setup ## run ruff, mypy --strict, codespell and the C warnings alone
	@$(PYTHON) -m pytest tests/unit/test_linters.py -q $(ARGS)

bench: setup ## measure the boot against a bare C init, memory, CPU, sizes, orphans; prints a table
	@$(PYTHON) -m rootfs image >/dev/null
	@$(PYTHON) -m rootfs cluster >/dev/null
	@$(SUDO) $(PYTHON) -m tests.bench $(ARGS)

fuzz: setup ## feed random frames to the API's decoder and sessions for a minute
	@$(PYTHON) -m tests.fuzz.protocol $(ARGS)

lock: setup ## renew the locks of Debian, Go and Python packages
	@$(PYTHON) -m rootfs lock

clean: ## remove what is built in the clone; the cache stays
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis initd/_native.*.so
	@find . -name __pycache__ -prune -exec rm -rf {} +
