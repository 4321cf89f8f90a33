import pytest

from gateway.config import ROSTER_STALE_S
from gateway.roster import Roster
from shared.common.errors import ClientError, Unavailable
from tests.fakes import ManualClock
from tests.gateway.fakes import MemoryFleet, worker


async def look(*workers: object) -> Roster:
    """A roster after one look."""
    roster = Roster(MemoryFleet(*workers), ManualClock())  # type: ignore[arg-type]
    await roster.look()
    return roster


async def test_models_are_what_live_targets_serve() -> None:
    """Draft workers and draining targets serve nobody new; the largest context is shown."""
    roster = await look(
        worker("target:a", max_model_len=512),
        worker("target:b", max_model_len=1_024),
        worker("target:c", model="x", is_draining=True),
        worker("draft:d", model="small"),
    )
    assert {name: found.max_model_len for name, found in roster.models.items()} == {"m": 1_024}
    assert roster.is_ready


async def test_an_unknown_model_is_the_clients_error() -> None:
    """404, after one more look."""
    roster = await look(worker())
    await roster.require("m")
    with pytest.raises(ClientError) as caught:
        await roster.require("n")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    "workers",
    [(), (worker("draft:a"),), (worker(is_draining=True),), (worker("target:b", model="x"),)],
    ids=["nobody", "draft-only", "draining", "other-model"],
)
async def test_no_target_is_no_fault_of_the_client(workers: tuple[object, ...]) -> None:
    """503 while nobody can say which models there are; 404 when somebody can."""
    roster = await look(*workers)
    others = bool(roster.targets)
    with pytest.raises(ClientError if others else Unavailable):
        await roster.require("m")


async def test_a_draining_model_comes_back_later() -> None:
    """Its last worker is going away while others serve other models: 503, not 404."""
    roster = await look(worker("target:a", is_draining=True), worker("target:b", model="x"))
    with pytest.raises(Unavailable):
        await roster.require("m")


async def test_unknown_models_do_not_cost_a_look_each() -> None:
    """A client that guesses names reads the heartbeats a few times a second at most."""
    fleet = MemoryFleet(worker())
    roster = Roster(fleet, ManualClock())
    for _ in range(10):
        with pytest.raises(ClientError):
            await roster.require("n")
    assert fleet.num_looks == 1


async def test_an_old_look_is_no_readiness() -> None:
    """When the server stops answering, the last look holds for a moment only."""
    fleet, clock = MemoryFleet(worker()), ManualClock()
    roster = Roster(fleet, clock)
    await roster.look()
    fleet.is_away = True
    await roster.look()
    assert roster.is_ready
    clock.advance(ROSTER_STALE_S)
    assert not roster.is_ready
    with pytest.raises(Unavailable):
        await roster.require("m")


async def test_waiting_jobs_are_counted_at_the_workers_and_in_the_queue() -> None:
    """Unclaimed and claimed but not begun."""
    roster = await look(worker("target:a", num_waiting=2), worker("target:b", num_waiting=1))
    assert roster.num_waiting == 6
