from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.admission import REASONS, Admission
from gateway.answer import Meter
from gateway.fleet_totals import FleetTotals
from gateway.metrics import OUTCOMES, Metrics
from shared.protocol.records import Failed, Record
from shared.protocol.workers import SpeculationTotals
from tests.fakes import ManualClock
from tests.gateway.fakes import worker
from tests.gateway.scripted import done, tokens

SPECULATION = SpeculationTotals(
    num_drafts=10, num_draft_tokens=30, num_accepted_tokens=18, accepted_per_position=(9, 6, 3)
)


def make() -> tuple[Metrics, FleetTotals]:
    """Fresh metrics."""
    fleet = FleetTotals()
    return Metrics(Admission(max_streams=1, max_waiting=1), fleet), fleet


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Every sample, by its name and the label that tells it from its siblings."""

    def parsed() -> Iterator[tuple[tuple[str, str], float]]:
        for family in text_string_to_metric_families(metrics.text().decode()):
            for sample in family.samples:
                labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
                yield (sample.name, ",".join(labels.values())), sample.value

    return dict(parsed())


def bench_reader(text: str) -> tuple[dict[str, int], dict[int, int]]:
    """What vLLM's benchmark does to find acceptance: names by substring, last word, position."""
    counts, positions = dict.fromkeys(("drafts", "draft_tokens", "accepted_tokens"), 0), {}
    for line in text.splitlines():
        if not line.startswith("vllm:spec_decode"):
            continue
        name, value = line.split()[0], int(float(line.split()[-1]))
        if "num_drafts" in name:
            counts["drafts"] += value
        elif "num_draft_tokens" in name:
            counts["draft_tokens"] += value
        elif "num_accepted_tokens_per_pos" in name:
            start = name.index('position="') + len('position="')
            positions[int(name[start : name.index('"', start)])] = value
        elif "num_accepted_tokens" in name:
            counts["accepted_tokens"] += value
    return counts, positions


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *[("vllm:request_success_total", outcome) for outcome in OUTCOMES],
        *[("vllm:admission_rejections_total", reason) for reason in REASONS],
        *[("vllm:time_to_first_token_seconds_bucket", "+Inf")],
        *[("vllm:inter_token_latency_seconds_count", "")],
        *[("vllm:e2e_request_latency_seconds_sum", "")],
        *[("vllm:prompt_tokens_total", ""), ("vllm:generation_tokens_total", "")],
        *[("vllm:num_requests_running", ""), ("vllm:num_requests_waiting", "")],
        *[("vllm:kv_cache_usage_perc", ""), ("vllm:spec_decode_num_drafts_total", "")],
        *[("vllm:spec_decode_num_accepted_tokens_per_pos_total", "0")],
    ],
)
def test_every_series_is_there_from_the_start(name: str, label: str) -> None:
    """A dashboard sees 0, not nothing."""
    assert samples(make()[0])[name, label] == 0


def test_a_benchmark_for_vllm_finds_our_acceptance() -> None:
    """The names, suffixes and labels that it looks for."""
    metrics, fleet = make()
    fleet.update([worker("target:a", speculation=SPECULATION)])
    counts, positions = bench_reader(metrics.text().decode())
    assert counts == {"drafts": 10, "draft_tokens": 30, "accepted_tokens": 18}
    assert [positions[i] for i in range(4)] == [9, 6, 3, 0]


def test_latency_is_per_token_and_not_per_round() -> None:
    """Three tokens after 0.3 s are three tokens 0.1 s apart."""
    metrics, _ = make()
    clock = ManualClock()
    meter = Meter(metrics, clock)
    records: list[Record] = [*tokens("a"), *tokens("b", "c", "d", offset=1, per_record=3)]
    for record in records:
        clock.advance(0.3)
        meter.observe(record)
    found = samples(metrics)
    assert found["vllm:time_to_first_token_seconds_count", ""] == 1
    assert found["vllm:time_to_first_token_seconds_sum", ""] == pytest.approx(0.3)
    assert found["vllm:inter_token_latency_seconds_count", ""] == 3
    assert found["vllm:inter_token_latency_seconds_sum", ""] == pytest.approx(0.3)
    assert found["vllm:inter_token_latency_seconds_bucket", "0.075"] == 0
    assert found["vllm:inter_token_latency_seconds_bucket", "0.15"] == 3


@pytest.mark.parametrize(
    ("record", "outcome"),
    [
        (done(4), "stop"),
        (Failed("cancelled", "", status=499), "abort"),
        (Failed("x", ""), "error"),
        (None, "abort"),
    ],
    ids=["done", "cancelled", "failed", "left"],
)
def test_an_answer_is_counted_once(record: Record | None, outcome: str) -> None:
    """By how it ended, with the tokens it sent; a client that leaves is no success."""
    metrics, _ = make()
    meter = Meter(metrics, ManualClock())
    meter.finish(record, 4)  # type: ignore[arg-type] # a terminal record, or none
    meter.finish(None, 9)
    found = samples(metrics)
    assert {name: found["vllm:request_success_total", name] for name in OUTCOMES} == {
        name: float(name == outcome) for name in OUTCOMES
    }
    assert found["vllm:generation_tokens_total", ""] == 4


def test_counters_do_not_go_back_when_a_worker_goes_away() -> None:
    """A counter that falls would be taken for a restart and counted again."""
    metrics, fleet = make()
    fleet.update([worker("target:a", speculation=SPECULATION, num_running=2)])
    fleet.update([worker("target:b", speculation=SPECULATION, num_running=1)])
    found = samples(metrics)
    assert found["vllm:spec_decode_num_drafts_total", ""] == 20
    assert found["vllm:num_requests_running", ""] == 1


def test_forgotten_workers_stay_in_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, the counts are not."""
    monkeypatch.setattr("gateway.fleet_totals.MAX_WORKERS", 2)
    metrics, fleet = make()
    for number in range(5):
        fleet.update([worker(f"target:{number}", speculation=SPECULATION)])
    assert samples(metrics)["vllm:spec_decode_num_drafts_total", ""] == 50
