"""What a worker says of itself in its heartbeat, `worker:W`, as JSON: how gateways see them."""

import msgspec

from shared.common.errors import PeerError


class SpeculationTotals(msgspec.Struct, frozen=True):
    """Counts since the worker started, for the metrics of all gateways."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_per_position: tuple[int, ...] = ()


class WorkerStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One heartbeat. Its absence, not its content, says that the worker is gone."""

    worker_id: str  # `target:…` or `draft:…`
    role: str  # target or draft
    model: str  # the directory's name: what clients ask for
    max_model_len: int  # tokens, prompt and output together
    vocab_size: int
    started_ms: int
    is_draining: bool = False
    num_running: int = 0
    num_waiting: int = 0  # claimed, not yet scheduled
    kv_cache_usage: float = 0.0  # 0 to 1
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_preemptions: int = 0
    speculation: SpeculationTotals = SpeculationTotals()


def decode_status(data: bytes) -> WorkerStatus:
    """Read a heartbeat.

    Raises:
        PeerError: it is not one.
    """
    try:
        return msgspec.json.decode(data, type=WorkerStatus)
    except msgspec.DecodeError as error:
        raise PeerError(f"unreadable heartbeat: {error}") from error
