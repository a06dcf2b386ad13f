# syntax=docker/dockerfile:1
# SeedVR Studio for a CUDA pod: everything is installed here, nothing is compiled, cloned or downloaded at the start.
#
#   docker build -t seedvr-studio .                                   no GPU is needed to build
#   docker build --build-arg BAKE_MODEL=seedvr2-3b -t seedvr-studio:3b .   with the weights of a model inside
#   docker run --gpus all -p 7860:7860 -v seedvr:/workspace seedvr-studio
#
# CUDA 12.8, since the drivers of rented machines are often older than CUDA 13 wants. Its torch is kept as it is.
ARG BASE_IMAGE=pytorch/pytorch:2.10.0-cuda12.8-cudnn9-runtime

# --- the environment, made by run.sh itself, from wheels only ---
FROM ${BASE_IMAGE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /opt/seedvr
ARG PIP_ONLY_BINARY=:all:
ARG PIP_NO_CACHE_DIR=1
# hadolint ignore=DL3008
RUN python3 -c 'import ensurepip, venv' \
    || { apt-get update && apt-get install -y --no-install-recommends python3-venv; }
COPY pyproject.toml constraints.txt README.md LICENSE run.sh ./
COPY docker/serverless.txt docker/
# The torch of the base is kept; without one the build stops.
ARG SEEDVR_KEEP_TORCH=1
RUN SEEDVR_PYTHON=python3 ./run.sh install && SEEDVR_PYTHON=python3 ./run.sh install serverless
# Gradio's share helper. Gradio knows its address and its SHA-256, and fails here if they do not agree.
ARG SHARE_HELPER=1
RUN mkdir -p share && if [ "${SHARE_HELPER}" = 1 ]; then \
        HF_HOME=share .venv/bin/python -c 'from gradio.tunneling import Tunnel; Tunnel.download_binary()' \
        && chmod 755 share/gradio/frpc/*; \
    fi
COPY . .
# Weights of a released model, if asked for; by default none are inside.
ARG BAKE_MODEL=""
RUN mkdir -p baked && if [ -n "${BAKE_MODEL}" ]; then \
        HF_HOME=baked .venv/bin/python docker/bake.py "${BAKE_MODEL}"; \
    fi
RUN .venv/bin/python -m compileall -q app.py serverless_app.py inference models seedvr_ui

# --- the image ---
FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="SeedVR Studio" \
      org.opencontainers.image.description="Restore and upscale real videos and images with SeedVR2, in the browser" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# tini hands signals on and collects what ended; sshd runs only if PUBLIC_KEY is set.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates openssh-server tini \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && mkdir -p /workspace && chmod 1777 /workspace
WORKDIR /opt/seedvr
COPY --from=build /opt/seedvr /opt/seedvr
ENV HOME=/tmp/home \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    SEEDVR_VOLUME=/workspace
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["/opt/seedvr/.venv/bin/python", "/opt/seedvr/docker/health.py"]
# Root by default, since the volumes of pods belong to root; `docker run --user 1000:1000` works as well.
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/seedvr/docker/start.sh"]
CMD ["serve"]
