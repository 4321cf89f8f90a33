"""The small endpoints: `/v1/models`, `/health`, `/ready`, `/metrics`."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.admission import Admission
from gateway.metrics import Metrics
from gateway.roster import Roster
from shared.common.errors import ClientError
from shared.protocol.workers import WorkerStatus


class Model(msgspec.Struct, frozen=True):
    """OpenAI's model object, with vLLM's additions."""

    id: str
    created: int  # Unix time in seconds
    root: str
    max_model_len: int
    object: str = "model"
    owned_by: str = "outrider"


class ModelList(msgspec.Struct, frozen=True):
    """OpenAI's list object."""

    data: tuple[Model, ...]
    object: str = "list"


class Models:
    """Answers from what the gateway knows anyway; none of these waits for the server."""

    def __init__(self, roster: Roster, admission: Admission, metrics: Metrics) -> None:
        self._roster = roster
        self._admission = admission
        self._metrics = metrics

    async def list_models(self, _request: Request) -> Response:
        """`GET /v1/models`."""
        return _json(ModelList(tuple(map(_model, self._roster.models.values()))))

    async def show_model(self, request: Request) -> Response:
        """`GET /v1/models/{model}`."""
        found = self._roster.models.get(request.path_params["model"])
        if found is None:
            message = "the model does not exist"
            raise ClientError(message, param="model", code="model_not_found", status=404)
        return _json(_model(found))

    async def health(self, _request: Request) -> Response:
        """`GET /health`: this process lives."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def ready(self, _request: Request) -> Response:
        """`GET /ready`: a request would be served."""
        if self._admission.is_draining:
            reason = "draining"
        elif not self._roster.is_fresh:
            reason = "no_server"
        elif not self._roster.is_ready:
            reason = "no_target"
        else:
            return Response(b'{"status":"ready"}', media_type="application/json")
        data = msgspec.json.encode({"status": "not_ready", "reason": reason})
        return Response(data, 503, {"retry-after": "1"}, media_type="application/json")

    async def metrics(self, _request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")


def _model(worker: WorkerStatus) -> Model:
    return Model(worker.model, worker.started_ms // 1_000, worker.model, worker.max_model_len)


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
