# The job as an image: locked, hash-checked, compiled to bytecode, and nothing in it but what runs.
#
#   make image                 # with docker, podman or buildah, as mnist-job:<version>
#   make image EXTRA=gpu       # mnist-job:<version>-gpu; CUDA's libraries come with TensorFlow
#   make image CA=/etc/ssl/certs/ca-certificates.crt    # behind a private certificate authority
#
# Any base with Python 3.11 to 3.13 and its venv will do. Pin yours by digest, or name a company's
# own, by: make image BASE=python:3.12-slim@sha256:...
#
# The secret `ca` is a bundle of certificates that the package index is verified by, instead of the
# base's; the secret `netrc` has the password of an index; and INDEX is its URL, if it is not the
# public one. The secrets are there while a step runs that asks the index, and in no layer.
ARG BASE=python:3.12-slim

# --- what the job needs; made anew only when the lock changes ---------------------------------
FROM ${BASE} AS dependencies
ARG EXTRA=cpu
ARG INDEX=
WORKDIR /build
COPY requirements.lock pyproject.toml ./
# Unchecked: a layer may change a file's time, which must not make Python compile it again.
ENV UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1 UV_LINK_MODE=copy PYC_INVALIDATION_MODE=UNCHECKED_HASH
# uv first, pinned and checked as everything else is.
RUN --mount=type=secret,id=ca --mount=type=secret,id=netrc if [ -f /run/secrets/ca ]; then \
        export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; \
    fi \
    && if [ -f /run/secrets/netrc ]; then export NETRC=/run/secrets/netrc; fi \
    && if [ -n "${INDEX}" ]; then export PIP_INDEX_URL="${INDEX}" UV_DEFAULT_INDEX="${INDEX}"; fi \
    && sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.lock \
    && python3 -m venv /uv \
    && /uv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes --requirement uv.lock \
    && /uv/bin/uv venv --no-cache --python python3 /opt/mnist-job \
    && /uv/bin/uv pip install --no-cache --python /opt/mnist-job --compile-bytecode \
        --constraint requirements.lock --require-hashes \
        --requirements pyproject.toml --extra "${EXTRA}" --extra tensorboard --group image
# What TensorFlow carries for those who build against it, and the job never loads.
RUN rm -rf /opt/mnist-job/lib/python3*/site-packages/clang \
        /opt/mnist-job/lib/python3*/site-packages/tensorflow/include \
        /opt/mnist-job/lib/python3*/site-packages/tensorflow/xla_aot_runtime_src \
        /opt/mnist-job/lib/python3*/site-packages/tensorflow/compiler/mlir/stablehlo/stablehlo_extension.so

# --- the job itself, into a folder of its own: a small layer on a large one that stays ---------
FROM dependencies AS job
ARG INDEX=
COPY LICENSE ./
COPY job job
RUN --mount=type=secret,id=ca --mount=type=secret,id=netrc if [ -f /run/secrets/ca ]; then \
        export SSL_CERT_FILE=/run/secrets/ca; \
    fi \
    && if [ -f /run/secrets/netrc ]; then export NETRC=/run/secrets/netrc; fi \
    && if [ -n "${INDEX}" ]; then export UV_DEFAULT_INDEX="${INDEX}"; fi \
    && /uv/bin/uv pip install --no-cache --python /opt/mnist-job --prefix /job --compile-bytecode \
        --no-deps --build-constraints requirements.lock .

# --- what runs --------------------------------------------------------------------------------
FROM ${BASE}
ARG VERSION=unknown
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="mnist-job" \
      org.opencontainers.image.description="Trains, scores and publishes a digit classifier." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="MIT AND CC-BY-SA-3.0"
RUN groupadd --gid 10001 job \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin job \
    && install --directory --owner 10001 --group 10001 /runs
COPY --from=dependencies /opt/mnist-job /opt/mnist-job
COPY --from=job /job /opt/mnist-job
# The root may be read-only: all that is scratch goes to /tmp, all that stays to /runs.
ENV PATH=/opt/mnist-job/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    TMPDIR=/tmp \
    GIT_COMMIT=${REVISION} \
    MNIST_JOB_INTERNAL_OUTPUT=/runs
WORKDIR /tmp
USER 10001:10001
# As PID 1, Python would ignore SIGTERM until the job installs its handler, and nobody would reap.
# dumb-init hands signals on from the first instant, to the job alone, which tells its own children.
ENTRYPOINT ["dumb-init", "--single-child", "--", "mnist-job"]
CMD ["train"]
