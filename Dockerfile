# Images of the service. Targets: api (the default), worker-cpu, worker-gpu.
#
#     docker build --target worker-cpu -t qtune/worker-cpu:0.1.0 .
#
# Large content that rarely changes is in its own layer below the code, so a change of code rebuilds and sends only the
# small last layer. Versions are those of constraints.txt. scripts/install.py chooses torch and vLLM. pip accepts only
# archives with a hash in requirements/, except for the CPU build of torch. Tags can be moved: pin the base by its
# digest for builds that matter (docs/operations/docker.md).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV QTUNE_VENV=/opt/qtune
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY scripts/install.py scripts/

FROM build AS wheel
COPY requirements/build.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements/build.txt
COPY README.md LICENSE ./
COPY qtune_service qtune_service
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-cache-dir --wheel-dir /dist .

FROM build AS requirements-api
COPY requirements/api.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python scripts/install.py --engine api --no-dev --requirements-only --require-hashes

FROM build AS requirements-cpu
COPY requirements/worker-cpu.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python scripts/install.py --engine cpu --no-dev --requirements-only --require-hashes

FROM build AS requirements-gpu
COPY requirements/worker-gpu.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python scripts/install.py --engine gpu --no-dev --requirements-only --require-hashes

# Common to all images: tini as PID 1, which forwards SIGTERM to the command and reaps its children, and a user. Only
# its home and /tmp are written to, so the root file system can be read-only.
FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini=0.19.0* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 qtune \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --home-dir /var/lib/qtune --shell /usr/sbin/nologin qtune
ENV PATH=/opt/qtune/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/qtune \
    QTUNE_DATA_ROOT=/var/lib/qtune
LABEL org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.vendor="qtune-service"
WORKDIR /var/lib/qtune
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]

# The nodes of a Ray cluster, and `qtune prune` on its own. KubeRay checks a node's health with wget, and vLLM loads
# libnuma.
FROM runtime AS worker
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget=1.21* libnuma1=2.0* \
    && rm -rf /var/lib/apt/lists/*
ENV RAY_USAGE_STATS_ENABLED=0
CMD ["qtune", "doctor"]

# CUDA comes with the wheels of torch and vLLM; the host provides the driver. Triton compiles its launchers with gcc.
FROM worker AS worker-gpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc=4:12.2.0* libc6-dev=2.36* \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.title="qtune/worker-gpu" \
    org.opencontainers.image.description="Scores fine-tuning data with vLLM on NVIDIA GPUs, under Ray"
COPY --from=requirements-gpu /opt/qtune /opt/qtune
COPY --from=wheel /dist /opt/dist
RUN /opt/qtune/bin/pip install --no-deps --no-index --no-cache-dir /opt/dist/*.whl
USER 10001:10001

FROM worker AS worker-cpu
LABEL org.opencontainers.image.title="qtune/worker-cpu" \
    org.opencontainers.image.description="Scores fine-tuning data with vLLM on CPUs, under Ray"
COPY --from=requirements-cpu /opt/qtune /opt/qtune
COPY --from=wheel /dist /opt/dist
RUN /opt/qtune/bin/pip install --no-deps --no-index --no-cache-dir /opt/dist/*.whl
USER 10001:10001

FROM runtime AS api
LABEL org.opencontainers.image.title="qtune/api" \
    org.opencontainers.image.description="Front end of Q-Tuning as a service: REST, web page, queue; no engine"
COPY --from=requirements-api /opt/qtune /opt/qtune
COPY --from=wheel /dist /opt/dist
RUN /opt/qtune/bin/pip install --no-deps --no-index --no-cache-dir /opt/dist/*.whl
ENV QTUNE_HOST=0.0.0.0
EXPOSE 8420
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('QTUNE_PORT', '8420')}/healthz\", timeout=4)"]
USER 10001:10001
CMD ["qtune", "serve"]
