# The bridge on a slim Python, as a user without a name, read-only and without pip. docs/operations.md, "The image",
# says how to build, pin and run it; `make package WHAT=image` checks it and rehearses each line below without a container engine.

ARG BASE_TAG=3.13-slim-trixie
# sha256:…, to build on exactly that base. Unset: the current image of the tag.
ARG BASE_DIGEST


FROM python:${BASE_TAG}${BASE_DIGEST:+@${BASE_DIGEST}} AS builder

WORKDIR /src

# Two environments: one builds the wheel, the other one ships; pip installs into it from outside and is not in it.
COPY requirements/build.txt requirements/image.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/build \
    && python -m venv --without-pip /opt/ollm-bridge \
    && /opt/build/bin/python -m pip install \
        --require-hashes --no-deps --only-binary=:all: --no-compile -r requirements/build.txt \
    && /opt/build/bin/python -m pip --python /opt/ollm-bridge/bin/python install \
        --require-hashes --no-deps --only-binary=:all: --no-compile -r requirements/image.txt

COPY pyproject.toml README.md LICENSE ./
COPY bridge/ bridge/
COPY generated/ generated/
# Python does not check this bytecode against its source: the tree is read-only, and a copy may change its times.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/build/bin/python -m pip wheel \
        --no-deps --no-build-isolation --check-build-dependencies --wheel-dir /opt/wheel . \
    && /opt/build/bin/python -m pip --python /opt/ollm-bridge/bin/python install \
        --no-deps --no-index --no-compile /opt/wheel/*.whl \
    && python -m compileall -q -f --invalidation-mode unchecked-hash /opt/ollm-bridge/lib


FROM python:${BASE_TAG}${BASE_DIGEST:+@${BASE_DIGEST}}

# No installer in the image. The base has no bytecode of its standard library, which would cost a third of a second at
# each start, and each health check is a start.
RUN python -m pip uninstall --yes --root-user-action=ignore setuptools wheel pip \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/ensurepip \
    && python -m compileall -q -f --invalidation-mode unchecked-hash \
        -x '/(site-packages|test|tests|idlelib|lib2to3|turtledemo)/' /usr/local/lib/python3.*/

COPY --from=builder /opt/ollm-bridge /opt/ollm-bridge

# All interfaces, since nobody outside reaches a container's loopback; so `serve` requires TLS or OLLM_BRIDGE_INSECURE=true.
# Several workers share their metrics through files, which are in memory, since the root file system may be read-only.
ENV PATH=/opt/ollm-bridge/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    TMPDIR=/dev/shm \
    OLLM_BRIDGE_LISTEN=0.0.0.0:50051

ARG BASE_TAG
ARG BASE_DIGEST
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="ollm-bridge" \
      org.opencontainers.image.description="A gRPC front for the Origin gateway's chat completions" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="python:${BASE_TAG}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"

# A number, so that runAsNonRoot can check it; the user owns no file and has no home.
USER 65532:65532
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=15s --retries=3 CMD ["ollm-bridge", "healthcheck"]
ENTRYPOINT ["ollm-bridge"]
CMD ["serve"]
