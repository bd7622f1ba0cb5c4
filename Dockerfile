# full: converts and serves (PyTorch and Keras inside).   docker build --target full -t menagerie:full .
# lean: serves what was converted, without a framework.   docker build --target lean -t menagerie:lean .
FROM python:3.11-slim-bookworm AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/venv/bin:$PATH \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    MENAGERIE_HOST=0.0.0.0 \
    MENAGERIE_PORT=8000 \
    MENAGERIE_REPOSITORY=/repository \
    MENAGERIE_CACHE=/cache \
    MENAGERIE_DRAIN_DELAY_SECONDS=5
RUN useradd --uid 10001 --no-create-home --home-dir /tmp menagerie \
 && mkdir /cache /repository \
 && chown menagerie /cache /repository \
 && python3 -m venv /venv
WORKDIR /app
EXPOSE 8000
STOPSIGNAL SIGTERM
# The first start of `full` converts, which takes minutes for large networks.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"MENAGERIE_PORT\"]}/health/ready')"]
COPY pyproject.toml constraints.txt LICENSE ./
# The build wants a README; the real one changes too often to stand before the dependencies.
RUN touch README.md

FROM base AS full
# Dependencies first: they change less often than the code.
RUN pip install --constraint constraints.txt '.[torch,keras]' && pip uninstall --yes menagerie
COPY service service
COPY models models
RUN pip install --no-deps . && cp -r models/repository/. /repository && chown -R menagerie /repository
USER menagerie
CMD ["menagerie", "serve"]

FROM full AS converted
USER root
RUN MENAGERIE_CACHE=/tmp/cache menagerie convert --output /published

FROM base AS lean
# For hosts without a GPU: --build-arg EXTRAS= leaves 2 GB of CUDA libraries out.
ARG EXTRAS=[cuda]
RUN pip install --constraint constraints.txt ".$EXTRAS" && pip uninstall --yes menagerie
COPY service service
COPY models models
RUN pip install --no-deps .
COPY --from=converted --chown=menagerie /published /repository
ENV MENAGERIE_CONVERT=false
USER menagerie
CMD ["menagerie", "serve"]
