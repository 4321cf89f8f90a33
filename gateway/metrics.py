"""Everything `/metrics` shows, under vLLM's names where vLLM has one, so that its tools fit.

Speculation, queue and cache figures come from the workers' heartbeats and are therefore the same on
every gateway; latencies and outcomes are of this gateway's own answers. All series exist from the
start, at 0.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.admission import Admission
from gateway.distribution import (
    E2E_BUCKETS_S,
    ITL_BUCKETS_S,
    TTFT_BUCKETS_S,
    Distribution,
)
from gateway.fleet_totals import FleetTotals, Totals
from shared.protocol.limits import MAX_SPECULATIVE_TOKENS

OUTCOMES = ("stop", "length", "abort", "error")
UNKNOWN_MODEL = ""  # the label of series that no model has filled yet


class Metrics(Collector):
    """Counts what this gateway does and shows it beside what the workers report.

    Args:
        admission: for refusals and what is in progress.
        fleet: for the workers' figures.
    """

    def __init__(self, admission: Admission, fleet: FleetTotals) -> None:
        self._admission = admission
        self._fleet = fleet
        self.ttft_s = Distribution(
            "vllm:time_to_first_token_seconds", "Submission to first token.", TTFT_BUCKETS_S
        )
        self.inter_token_latency_s = Distribution(
            "vllm:inter_token_latency_seconds", "Per token, not per round.", ITL_BUCKETS_S
        )
        self.e2e_latency_s = Distribution(
            "vllm:e2e_request_latency_seconds", "Submission to the end.", E2E_BUCKETS_S
        )
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_resumes = 0
        self.num_slow_clients = 0
        self.num_sockets_opened = 0
        self.num_catch_ups = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Any]:
        """Prometheus's hook."""
        model = next(iter(sorted(self._fleet.by_model)), UNKNOWN_MODEL)
        for distribution in (self.ttft_s, self.inter_token_latency_s, self.e2e_latency_s):
            yield distribution.family(model)
        yield _counter("vllm:prompt_tokens", "Prompt tokens answered.", self.num_prompt_tokens)
        yield _counter("vllm:generation_tokens", "Tokens sent.", self.num_generation_tokens)
        success = CounterMetricFamily(
            "vllm:request_success", "Answers by how they ended.", labels=("finished_reason",)
        )
        for reason, count in self.outcomes.items():
            success.add_metric((reason,), count)
        yield success
        rejections = CounterMetricFamily(
            "vllm:admission_rejections", "Requests refused.", labels=("reason",)
        )
        for reason, count in self._admission.rejections.items():
            rejections.add_metric((reason,), count)
        yield rejections
        yield from self._own()
        yield from _fleet_families(self._fleet.by_model or {UNKNOWN_MODEL: Totals()})

    def _own(self) -> Iterator[Any]:
        admission = self._admission
        yield _gauge("outrider:streams", "Answers in progress.", admission.num_streams)
        yield _gauge("outrider:streams_waiting", "Without a first token.", admission.num_waiting)
        yield _gauge("vllm:websocket_connections_active", "Open WebSockets.", admission.num_sockets)
        yield _counter("vllm:websocket_connections", "WebSockets opened.", self.num_sockets_opened)
        yield _counter("outrider:resumes", "Streams continued by cursor.", self.num_resumes)
        yield _counter("outrider:slow_clients", "Clients dropped.", self.num_slow_clients)
        yield _counter("outrider:log_catch_ups", "Reads of a log.", self.num_catch_ups)


def _fleet_families(by_model: dict[str, Totals]) -> Iterable[Any]:
    gauges = {
        "vllm:num_requests_running": ("Jobs in rounds.", "num_running"),
        "vllm:num_requests_waiting": ("Jobs claimed, not begun.", "num_waiting"),
        "vllm:kv_cache_usage_perc": ("Used share of the blocks, 0 to 1.", "kv_cache_usage"),
    }
    for name, (meaning, field) in gauges.items():
        gauge = GaugeMetricFamily(name, meaning, labels=("model_name",))
        for model, totals in by_model.items():
            gauge.add_metric((model,), getattr(totals, field))
        yield gauge
    counters = {
        "vllm:spec_decode_num_drafts": ("Verify rounds with drafts.", "num_drafts"),
        "vllm:spec_decode_num_draft_tokens": ("Draft tokens.", "num_draft_tokens"),
        "vllm:spec_decode_num_accepted_tokens": ("Accepted.", "num_accepted_tokens"),
        "vllm:num_preemptions": ("Jobs recomputed for want of blocks.", "num_preemptions"),
    }
    for name, (meaning, field) in counters.items():
        counter = CounterMetricFamily(name, meaning, labels=("model_name",))
        for model, totals in by_model.items():
            counter.add_metric((model,), getattr(totals, field))
        yield counter
    positions = CounterMetricFamily(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "Accepted at each draft position.",
        labels=("model_name", "position"),
    )
    for model, totals in by_model.items():
        for position in range(MAX_SPECULATIVE_TOKENS):
            accepted = totals.accepted_per_position
            count = accepted[position] if position < len(accepted) else 0
            positions.add_metric((model, str(position)), count)
    yield positions


def _counter(name: str, meaning: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, meaning, value=value)


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=value)
