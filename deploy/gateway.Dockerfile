# The gateway: no torch, no model. Build from the root of the tree (compose.yaml does).
ARG BASE=python:3.13-slim
FROM ${BASE}

ENV PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app
COPY requirements/gateway.txt requirements/
RUN pip install --require-hashes --no-deps -r requirements/gateway.txt \
    && useradd --system --uid 10001 --no-create-home outrider

COPY shared shared
COPY gateway gateway
COPY stack stack

USER outrider
EXPOSE 8000
CMD ["python", "-m", "gateway", "--host", "0.0.0.0"]
