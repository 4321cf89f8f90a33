import pytest

from gateway.lanes import Lanes
from shared.common.errors import Unavailable


def lanes() -> Lanes[int]:
    """Two lanes, two requests waiting in each."""
    return Lanes(max_lanes=2, max_queue=2)


def test_a_lane_is_first_in_first_out() -> None:
    """The second request of a lane waits for the first."""
    queue = lanes()
    assert queue.put("a", 1)
    assert not queue.put("a", 2)
    order = []
    while (work := queue.head("a")) is not None:
        order.append(work)
        queue.done("a")
    assert order == [1, 2]
    assert queue.num_busy == 0


def test_lanes_do_not_wait_for_each_other() -> None:
    """Each runs by itself; without a name there is a lane, too."""
    queue = lanes()
    assert queue.put("a", 1)
    assert queue.put(None, 2)
    assert (queue.head("a"), queue.head(None)) == (1, 2)


def test_the_number_of_lanes_is_bounded_and_idle_ones_do_not_count() -> None:
    """Names can be invented freely, work at once cannot."""
    queue = lanes()
    queue.put("a", 1)
    queue.put("b", 1)
    with pytest.raises(Unavailable) as caught:
        queue.put("c", 1)
    assert (caught.value.status, caught.value.code) == (429, "too_many_lanes")
    queue.done("a")
    assert queue.head("a") is None
    assert queue.put("c", 1)


def test_the_queue_of_a_lane_is_bounded() -> None:
    """One runs, `max_queue` wait."""
    queue = lanes()
    for work in range(3):
        queue.put("a", work)
    with pytest.raises(Unavailable) as caught:
        queue.put("a", 3)
    assert caught.value.code == "lane_full"
