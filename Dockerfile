# The images of Baton, one a target (`make image` builds those without CUDA):
#   router       HTTP in, messages to workers out: no torch, no compiler, no model
#   worker-cpu   prefill and decode workers, and the `baton` command
#   worker-cuda  the same for NVIDIA's GPUs; with the C compiler that Triton needs
#   redis        Debian's redis-server, for clusters that have none
# The arguments after the image's name choose the module: `router ...`, `decode_worker ...`.
# The base has apt, and Python 3.11 to 3.13 with pip and venv. Python's packages are those of
# requirements/, by hash, from PIP_INDEX_URL; torch for CPUs from TORCH_LINKS, a page of links or a
# folder, for it is not on PyPI.
ARG BASE_IMAGE=python:3.11-slim
ARG REDIS_BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS base
# An init, for Python as process 1 would leave orphans. Versions are the base's own.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# All that is ever written lies below /tmp, where any user may: a strange uid has no home.
ENV PATH=/opt/venv/bin:/opt/baton/app/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    HOME=/tmp \
    LOGNAME=baton \
    XDG_CACHE_HOME=/tmp/cache \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor \
    BATON_KERNELS=/opt/baton/kernels

# What changes with a lock alone. Compiled here, since nothing is written where it runs, and so that
# the same locks give the same bytes.
FROM base AS packages
ARG PIP_INDEX_URL=https://pypi.org/simple
ARG PIP_EXTRA_INDEX_URL=
COPY requirements/base.lock /src/
RUN python3 -m venv --without-pip /opt/venv \
    && pip3 --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-deps \
        --only-binary :all: --require-hashes --requirement /src/base.lock \
    && printf '/opt/torch\n/opt/baton/app\n' \
        > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/baton.pth" \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib

# Sources of newer Pythons (py312_...) are left as they are.
FROM packages AS torch-cpu
ARG TORCH_LINKS=https://download.pytorch.org/whl/cpu/torch/
COPY requirements/torch-cpu.lock /src/
RUN pip3 --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-deps \
        --only-binary :all: --require-hashes --target /opt/torch \
        --find-links "${TORCH_LINKS}" --requirement /src/torch-cpu.lock \
    && /opt/venv/bin/python -m compileall -q -x py312_ --invalidation-mode unchecked-hash /opt/torch

FROM packages AS torch-cuda
COPY requirements/torch-cuda.lock /src/
RUN pip3 --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-deps \
        --only-binary :all: --require-hashes --target /opt/torch \
        --requirement /src/torch-cuda.lock \
    && /opt/venv/bin/python -m compileall -q -x py312_ --invalidation-mode unchecked-hash /opt/torch

# Every C kernel for every kind of processor of this architecture.
FROM packages AS kernels
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
WORKDIR /src
COPY protocol protocol
COPY engine engine
COPY kvtransfer kvtransfer
COPY router router
COPY tools tools
RUN PYTHONSAFEPATH='' python -m tools.prebuild /opt/baton/kernels

# What changes with Baton itself, in one layer.
FROM packages AS app
WORKDIR /opt/baton/app
COPY pyproject.toml LICENSE ./
COPY deploy/bin bin
COPY protocol protocol
COPY engine engine
COPY kvtransfer kvtransfer
COPY router router
COPY worker worker
COPY prefill_worker prefill_worker
COPY decode_worker decode_worker
COPY controlplane controlplane
RUN chmod -R u=rwX,go=rX . \
    && chmod 755 bin/* \
    && python -m compileall -q --invalidation-mode unchecked-hash .

FROM base AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="baton" \
      org.opencontainers.image.description="Large language models with prefill and decode on separate pools" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=packages /opt/venv /opt/venv
WORKDIR /tmp
USER 1000:0
ENTRYPOINT ["tini", "--", "python", "-m"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m CMD ["baton-healthy"]

FROM runtime AS router
COPY --from=kernels /opt/baton/kernels /opt/baton/kernels
COPY --from=app /opt/baton/app /opt/baton/app
EXPOSE 8000
CMD ["router", "--host", "0.0.0.0"]

FROM runtime AS worker-cpu
COPY --from=torch-cpu /opt/torch /opt/torch
COPY models/tiny /opt/baton/models/tiny
COPY --from=kernels /opt/baton/kernels /opt/baton/kernels
COPY --from=app /opt/baton/app /opt/baton/app
ENV BATON_MODEL=/opt/baton/models/tiny \
    BATON_METRICS_PORT=9400
EXPOSE 9300 9400 9500
CMD ["decode_worker", "--help"]

# Triton compiles a launcher for each kernel by the machine's compiler, against Python's headers. The
# driver is the host's, put in by NVIDIA's runtime; which CUDA torch is built for says the label, and
# a worker compares it with the driver at its start.
FROM runtime AS worker-cuda
LABEL baton.cuda="13.0"
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && if ! test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"; \
        then apt-get install --yes --no-install-recommends python3-dev; fi \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
USER 1000:0
COPY --from=torch-cuda /opt/torch /opt/torch
COPY models/tiny /opt/baton/models/tiny
COPY --from=kernels /opt/baton/kernels /opt/baton/kernels
COPY --from=app /opt/baton/app /opt/baton/app
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    BATON_MODEL=/opt/baton/models/tiny \
    BATON_METRICS_PORT=9400
EXPOSE 9300 9400 9500
CMD ["decode_worker", "--help"]

# Nothing is kept on a disk: what Redis holds, workers write again when it comes back empty.
FROM ${REDIS_BASE_IMAGE} AS redis
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="baton-redis" \
      org.opencontainers.image.description="Debian's redis-server as Baton wants it" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
WORKDIR /tmp
USER 1000:0
EXPOSE 6379
HEALTHCHECK --interval=10s --timeout=5s CMD ["redis-cli", "ping"]
CMD ["redis-server", "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", "/tmp", "--maxmemory", "256mb", "--maxmemory-policy", "noeviction"]
