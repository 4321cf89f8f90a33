"""What an operator can set. One field, one flag, one variable (`GATEWAY_MAX_STREAMS`)."""

from typing import Annotated

from msgspec import Meta

from shared.config.common import CommonConfig

FIRST_RECORD_S = 5.0  # how long the HTTP status waits for the worker's own verdict on the request
SILENCE_S = 2.0  # without news for this long a reader looks into the log itself
ROSTER_INTERVAL_S = 1.0  # how often heartbeats are read
ROSTER_STALE_S = 4.0  # without a successful look for this long the gateway is not ready


class GatewayConfig(CommonConfig, frozen=True, kw_only=True):
    """The effective settings of one gateway."""

    host: Annotated[str, Meta(min_length=1, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="port; 0 takes a free one")] = 8000
    max_streams: Annotated[
        int, Meta(ge=1, le=100_000, description="answers at once here; more get 429")
    ] = 1_000
    max_waiting: Annotated[
        int, Meta(ge=1, le=100_000, description="requests without a first token; more get 503")
    ] = 256
    max_connections: Annotated[
        int, Meta(ge=1, le=1_000_000, description="open sockets; more get 503")
    ] = 4_096
    max_lanes: Annotated[int, Meta(ge=1, le=1_024, description="lanes of a WebSocket")] = 16
    max_lane_queue: Annotated[
        int, Meta(ge=1, le=1_024, description="requests queued in a lane")
    ] = 8
    keepalive_s: Annotated[
        float, Meta(gt=0, le=3_600, description="seconds of silence before a sign of life")
    ] = 10.0
    send_deadline_s: Annotated[
        float, Meta(gt=0, le=3_600, description="seconds a client may refuse to read")
    ] = 30.0
    drain_s: Annotated[
        float, Meta(ge=0, le=3_600, description="seconds to finish after SIGTERM")
    ] = 20.0
