# lbitcls with what export needs. A container runs the quickstart: it trains a 4-bit classifier and exports it.
#
#   docker build --tag lbitcls .
#   docker build --tag lbitcls:cuda --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#   docker run --rm lbitcls
#   docker run --rm --gpus all lbitcls:cuda make quickstart ARGS="--device cuda"
#
# BASE is any Debian or Ubuntu with Python 3.11 or newer; PyTorch brings its own CUDA libraries.
ARG BASE=debian:12-slim
# hadolint ignore=DL3006
FROM ${BASE}

# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends make python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 lbitcls

USER 10001
WORKDIR /home/lbitcls
ENV PIP_NO_CACHE_DIR=1 PATH=/home/lbitcls/.venv/bin:$PATH

COPY --chown=10001 Makefile pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY --chown=10001 requirements requirements
COPY --chown=10001 lbitcls lbitcls
COPY --chown=10001 configs configs
COPY --chown=10001 tools tools
RUN make install

CMD ["make", "quickstart"]
