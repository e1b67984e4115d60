# One image for every role; the arguments choose the module:
#   docker run IMAGE                                  a whole cluster in one container
#   docker run IMAGE router --redis URL ...           one process of a larger one
# Machines without a GPU want a CPU build of torch:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ARG PIP_EXTRA_INDEX_URL
ARG CONSTRAINTS=constraints-cpu.txt
WORKDIR /src
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY pyproject.toml constraints-cpu.txt README.md LICENSE ./
COPY protocol protocol
COPY engine engine
COPY kvtransfer kvtransfer
COPY router router
COPY worker worker
COPY prefill_worker prefill_worker
COPY decode_worker decode_worker
COPY controlplane controlplane
RUN pip install --no-cache-dir --constraint "${CONSTRAINTS}" .

FROM ${BASE_IMAGE}
# C kernels are built for the CPU they run on, at the first start of a worker or a router, and Triton's
# for the GPU: into XDG_CACHE_HOME, which any user can write, as the home that a strange uid has not.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
COPY models/tiny /opt/baton/models/tiny
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    BATON_MODEL=/opt/baton/models/tiny
USER 1000:1000
WORKDIR /tmp
EXPOSE 8000
ENTRYPOINT ["python", "-m"]
CMD ["controlplane.cli.main", "up", "--host", "0.0.0.0"]
