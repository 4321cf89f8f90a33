# Target and draft workers. Build from the root of the tree (compose.yaml does).
#   BASE                 a Python >= 3.11 image; for GPUs one that the torch build supports
#   PIP_EXTRA_INDEX_URL  an index with another build of torch than the default one, such as CPU only
ARG BASE=python:3.13-slim
FROM ${BASE}

ENV PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    OMP_NUM_THREADS=1 \
    OMP_WAIT_POLICY=PASSIVE \
    TOKENIZERS_PARALLELISM=false \
    TRITON_CACHE_DIR=/tmp/triton \
    NUMBA_CACHE_DIR=/tmp/numba

ARG PIP_EXTRA_INDEX_URL
WORKDIR /app
COPY requirements/worker.txt requirements/torch.txt requirements/
# Torch is pinned but not hashed: its builds differ. The lock's versions bind it all the same.
RUN pip install --require-hashes --no-deps -r requirements/worker.txt \
    && sed -n 's/ *\\$//; /^[A-Za-z0-9._-]*==/p' requirements/worker.txt > /tmp/constraints.txt \
    && PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL}" \
       pip install --constraint /tmp/constraints.txt -r requirements/torch.txt \
    && rm /tmp/constraints.txt \
    && useradd --system --uid 10001 --no-create-home outrider

COPY kernels kernels
COPY shared shared
COPY target_worker target_worker
COPY draft_worker draft_worker
COPY stack stack

USER outrider
CMD ["python", "-m", "target_worker", "--help"]
