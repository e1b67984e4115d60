# The commands of this project; continuous integration runs these and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS_VENV ?= .venv-kvtransfer
ROUTERS_VENV ?= .venv-router
UCX_VENV ?= .venv-ucx
# A machine with an NVIDIA driver takes torch as the range in pyproject.toml admits it.
CONSTRAINTS ?= $(if $(wildcard /proc/driver/nvidia/version),,-c constraints-cpu.txt)

.PHONY: help setup demo quick test test-long test-rollouts test-clients test-cluster test-containers test-kernels test-ucx image lock lock-check manifests check tree bench bench-kvtransfer bench-prefix-index bench-placement bench-router soak-router chaos gpu gpu-wheels soak fuzz clean
help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## the virtual environment, with everything installed

$(VENV)/.ready: $(VENV)/.product
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[test,check]"
	touch $@

$(VENV)/.product: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[local]"
	touch $@

demo: $(VENV)/.product  ## one question and a follow-up through two prefill and two decode workers
	$(BIN)/python -m controlplane.cli.demo

quick: setup  ## the tests without a socket, a process or Redis, in a minute or so
	$(BIN)/python -m pytest -m quick $(ARGS)

# Those that start processes run one after the other, the rest beside them: tests/support/tiers.py.
JOBS ?= 2
IN_TURNS := -n $(JOBS) --dist loadgroup
test: setup  ## every test but the long ones, system tests included: JOBS=2 beside each other
	$(BIN)/python -m pytest $(IN_TURNS) $(ARGS)

# 5: none is marked so, or ARGS chose none.
test-long: setup  ## the tests that take minutes
	$(BIN)/python -m pytest $(IN_TURNS) -m long $(ARGS) || [ $$? = 5 ]

# The images of one Dockerfile, for a registry: REPOSITORY=registry.example/team/baton PUSH=1. ENGINE
# may be podman; IMAGE_ARGS are more of its arguments (--build-arg PIP_INDEX_URL=..., --platform ...).
ENGINE ?= docker
REPOSITORY ?= baton
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGES ?= router worker-cpu redis
# The chart's Redis: its own version, so that an upgrade of Baton leaves it.
REDIS_TAG ?= 1
IMAGE_ARGS ?=
image:  ## the images, for CPUs: IMAGES="router worker-cuda redis" REPOSITORY=baton TAG=0.1.0 ENGINE=docker PUSH=
	@set -e; for name in $(IMAGES); do \
		case $$name in redis) tags="$(TAG) $(REDIS_TAG)";; *) tags="$(TAG)";; esac; \
		$(ENGINE) build --target $$name $$(printf -- "--tag $(REPOSITORY)-$$name:%s " $$tags) \
			--build-arg VERSION=$(TAG) \
			--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) $(IMAGE_ARGS) .; \
		if [ -n "$(PUSH)" ]; then for tag in $$tags; do $(ENGINE) push $(REPOSITORY)-$$name:$$tag; done; fi; \
	done

LOCK_VENV ?= .venv-lock
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
lock: setup $(LOCK_VENV)/.ready  ## what images install, pinned anew in requirements/: ARGS=--upgrade TORCH_INDEX=
	$(BIN)/python -m tools.lock --uv $(LOCK_VENV)/bin/uv --torch-index $(TORCH_INDEX) $(ARGS)

lock-check: setup $(LOCK_VENV)/.ready  ## every pin has wheels for Python 3.11 to 3.13, x86-64 and aarch64
	$(BIN)/python -m tools.lock --check --uv $(LOCK_VENV)/bin/uv $(ARGS)

$(LOCK_VENV)/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	touch $@

manifests: setup  ## deploy/manifests from the chart, for kubectl apply
	PYTHONPATH=.:tests $(BIN)/python -m tools.manifests

# The images built from a Debian of debootstrap and run: as root, with Debian's tools; some minutes.
CONTAINER_TOOLS := buildah podman runc conmon netavark aardvark-dns iptables catatonit debootstrap
test-containers: setup  ## the images built here and run: sizes, layers, kernels, one request between containers
	@for tool in buildah podman runc iptables catatonit debootstrap; do command -v $$tool > /dev/null || \
		{ echo "no $$tool: apt-get install --no-install-recommends $(CONTAINER_TOOLS)"; exit 1; }; done
	$(BIN)/python -m pytest -m containers tests/containers $(ARGS)

# Debian 12's newest source of all of Kubernetes: built as root, in ten minutes, and kept.
CONTROL_PLANE ?= $(HOME)/.cache/baton/control-plane-1.20.2
test-cluster: setup $(CONTROL_PLANE)/kube-scheduler  ## the chart by Helm on a real API server with nodes of two kinds, that run nothing
	CONTROL_PLANE=$(abspath $(CONTROL_PLANE)) $(BIN)/python -m pytest -m cluster tests/cluster $(ARGS)

$(CONTROL_PLANE)/kube-scheduler:
	tests/cluster/build_control_plane.sh $(@D)

test-rollouts: setup  ## everything changed while pods serve, as root; half an hour
	$(BIN)/python -m pytest -m "rollouts or not rollouts" tests/rollouts $(ARGS)

# The oldest Triton that GPU machines come with and we support, in front of that of the environment.
TRITON ?= 3.6.0
TRITON_DIR ?= .venv-triton-$(TRITON)
test-kernels: setup $(TRITON_DIR)/.ready  ## every kernel compiled by an older Triton: TRITON=3.6.0
	PYTHONPATH=$(TRITON_DIR) $(BIN)/python -m pytest -m "long or not long" $(wildcard tests/kernels/test_*compiled*.py) tests/kernels/test_bound.py $(ARGS)

$(TRITON_DIR)/.ready:
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(TRITON_DIR) triton==$(TRITON)
	touch $@

# UCX's shared memory tells of a dead peer only when asked to. Ten minutes at most each.
UCX_TESTS := tests/contract/test_transport.py tests/contract/test_transfer_kill.py tests/system/test_ucx.py
test-ucx: $(UCX_VENV)/.ready  ## the ucx plane over UCX's own TCP and shared memory, in an environment of its own
	UCX_TLS=tcp timeout 600 $(UCX_VENV)/bin/python -m pytest -k ucx $(UCX_TESTS) $(ARGS)
	UCX_TLS=posix,cma,self UCX_MM_ERROR_HANDLING=y timeout 600 $(UCX_VENV)/bin/python -m pytest -k ucx $(UCX_TESTS) $(ARGS)

# Clients as people have them, each in an environment of its own: 5 GB, and a quarter of an hour to install.
CLIENTS_VENV ?= .venv-clients
CLIENTS := $(basename $(notdir $(wildcard tests/clients/environments/*.txt)))
test-clients: setup $(CLIENTS:%=$(CLIENTS_VENV)/%/.ready) $(CLIENTS_VENV)/js/.ready  ## the API as twenty clients use it
	CLIENTS_VENV=$(CLIENTS_VENV) $(BIN)/python -m pytest -m "long or not long" tests/clients $(ARGS)

$(CLIENTS_VENV)/js/.ready: tests/clients/package.json
	mkdir -p $(@D) && cp $< $(@D) && npm --prefix $(@D) install --silent --no-fund --no-audit
	touch $@

$(CLIENTS_VENV)/%/.ready: tests/clients/environments/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -r $<
	touch $@

$(UCX_VENV)/.ready: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(UCX_VENV)
	$(UCX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[test,ucx]"
	touch $@

check: setup  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tree: setup  ## the shape of the house: files, folders, circles and lines, beside their limits
	$(BIN)/python -m tools.tree $(ARGS)

bench: setup  ## the measurements under bench/, written to bench/results/
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.step_model
	$(BIN)/python -m bench.load_reports
	for routers in 1 2 4; do $(BIN)/python -m bench.two_routers --routers $$routers || exit 1; done
	$(BIN)/python -m bench.engine
	$(BIN)/python -m bench.interference
	PYTHONPATH=.:tests $(BIN)/python -m bench.fairness
	PYTHONPATH=.:tests $(BIN)/python -m bench.placement_decision
	PYTHONPATH=.:tests $(BIN)/python -m bench.pull

# A machine lent with a GPU has torch and no registry: PY is its Python, and .wheels/ goes along.
PY ?= 3.12
gpu-wheels: setup  ## what a bare GPU machine lacks, for tools/first_gpu.sh there: PY=3.12 (or 3.11)
	$(BIN)/python -m tools.first_gpu.wheels --python $(PY)

# Where this environment lies on the GPU's own machine; elsewhere tools/first_gpu.sh makes one.
STAGE ?= check
OUT ?= build/gpu
gpu: setup  ## a stage of the first hour on a GPU, ten minutes at most: STAGE=check, profile, tune or serve OUT=build/gpu
	$(BIN)/python -m tools.first_gpu $(STAGE) $(OUT) $(ARGS)

# Mooncake's traces are not part of this repository: TRACES="PATH ..." names them.
TRACES ?=
bench-placement: setup  ## where requests go, by Baton and by its peers' rules, in virtual time: TRACES="PATH ..."
	PYTHONPATH=.:tests $(BIN)/python -m bench.placement $(TRACES) $(ARGS)

soak: setup  ## 20,000 transfers with a fifth broken off, and what stays behind
	PYTHONPATH=.:tests $(BIN)/python -m support.soak

SECONDS ?= 600
fuzz: setup  ## spoilt traffic and strangers against both ends of a transfer: SECONDS=600
	PYTHONPATH=.:tests $(BIN)/python -m support.fuzz --seconds $(SECONDS)

bench-prefix-index: setup  ## the prefix index of a router: memory, look-ups, events and stops, up to 10 million blocks
	PYTHONPATH=.:tests $(BIN)/python -m bench.prefix_index $(ARGS)

bench-kvtransfer: $(PEERS_VENV)/.ready  ## KV transfer beside NIXL, Mooncake, UCX, gloo and ZeroMQ, in an environment of its own
	$(PEERS_VENV)/bin/python -m bench.kvtransfer $(ARGS)

$(PEERS_VENV)/.ready: pyproject.toml constraints-cpu.txt $(wildcard bench/kvtransfer/peers*.txt)
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e . -r bench/kvtransfer/peers.txt
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --no-deps -r bench/kvtransfer/peers-no-deps.txt
	@command -v iperf3 >/dev/null || echo "no iperf3: apt-get install iperf3, or the TCP limit is recorded as absent"
	touch $@

bench-router: $(ROUTERS_VENV)/.ready  ## a router's CPU and latencies beside sglang-router and Dynamo's frontend, in an environment of its own
	$(ROUTERS_VENV)/bin/python -m bench.router $(ARGS)

chaos: SECONDS = 300
chaos: setup  ## two routers and eight workers, killed, stopped and restarted under load: SECONDS=300
	PYTHONPATH=.:tests $(BIN)/python -m bench.chaos --seconds $(SECONDS) $(ARGS)

soak-router: setup  ## 2,000 streams for two minutes, a tenth of their clients slow and a tenth hanging up
	$(BIN)/python -m bench.router_soak $(ARGS)

$(ROUTERS_VENV)/.ready: pyproject.toml constraints-cpu.txt $(wildcard bench/router_sim/peers*.txt)
	$(PYTHON) -m venv $(ROUTERS_VENV)
	$(ROUTERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[test]" -r bench/router_sim/peers.txt
	$(ROUTERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r bench/router_sim/peers-no-deps.txt
	touch $@

clean:
	rm -rf $(VENV) $(LOCK_VENV) $(PEERS_VENV) $(ROUTERS_VENV) $(UCX_VENV) .venv-triton-* .venv-gpu .wheels build *.egg-info
