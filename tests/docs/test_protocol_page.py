"""docs/protocol.md says what the code does: its tables are compared, its commands are run."""

import re
import shlex
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from shared.bus.connection import Bus
from shared.bus.library import SOURCE
from shared.bus.link import Reply
from shared.protocol import limits
from shared.protocol.jobs import TRANSITIONS, JobEntry, JobState
from shared.protocol.keys import Keys, Priority
from shared.protocol.messages import Message
from shared.protocol.records import (
    Failed,
    Finished,
    FinishReason,
    Record,
    SpeculationStats,
    Usage,
    to_fields,
)
from shared.protocol.sampling import SamplingParams
from shared.protocol.workers import SpeculationTotals, WorkerStatus
from tests.bus_worker import BusWorker, done, tokens

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def section(title: str) -> str:
    """The text below one heading."""
    found = re.search(
        rf"^## {re.escape(title)}.*?$(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE
    )
    assert found, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, headings left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    breaks = [index for index, row in enumerate(cells) if set(row[0]) == {"-"}]
    heads = {index for at in breaks for index in (at - 1, at)}
    return [row for index, row in enumerate(cells) if index not in heads]


def names(text: str) -> list[str]:
    """What stands in code marks."""
    return re.findall(r"`([^`]+)`", text)


def test_limits() -> None:
    """Every constant, with its value."""
    table = {names(row[0])[0]: row[1] for row in rows(section("Limits"))}
    public = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert public.pop("PROTOCOL_VERSION") == 1
    assert table == {name: str(value) for name, value in public.items()}


def test_states() -> None:
    """Row by row the table that the server enforces."""
    table = [
        (None if row[0] == "—" else JobState(row[0]), row[1], JobState(row[2]))
        for row in rows(section("The job"))
        if len(row) == 3
    ]
    assert table == [(state, event, after) for (state, event), after in TRANSITIONS.items()]


def test_keys() -> None:
    """Each key that the code can name."""
    keys = Keys()
    table = {name for row in rows(section("Keys")) for name in names(row[0])}
    assert table == {
        *(keys.jobs(priority) for priority in Priority),
        *(keys.job("ID"), keys.log("ID"), keys.drafts, keys.inbox("W"), keys.heartbeat("W")),
        *(keys.workers, keys.dead),
    }


def test_submission_fields() -> None:
    """Those that an entry is written with, and the two that only submitters use."""
    table = {names(row[0])[0] for row in rows(section("Submission"))}
    full = JobEntry("j", b"{}", 1, "t", "p", "r").to_fields()
    assert table == {*full, "idem"}
    assert f"1 to {limits.MAX_ID_CHARS} of letters" in section("Submission")


def test_records() -> None:
    """The fields of each record, in order."""
    examples: list[Record] = [
        tokens(0, 1),
        Finished(0, "", FinishReason.STOP),
        done(),
        Failed("code", "message"),
    ]
    text = section("The log")
    table = {names(row[0])[0]: names(row[1]) for row in rows(text)}
    assert table.pop("error") == [*list(to_fields(examples.pop()))[2:], "param"]
    written = [to_fields(record) for record in examples]
    assert table == {fields["ev"]: list(fields)[2:] for fields in written}
    for struct in (Usage, SpeculationStats):
        assert set(struct.__struct_fields__) <= set(names(text))


def test_messages() -> None:
    """Tags and fields of every message, in wire order."""
    table = {names(row[0])[0]: names(row[2]) for row in rows(section("Inboxes"))}
    assert table == {
        str(kind.__struct_config__.tag): list(kind.__struct_fields__) for kind in get_args(Message)
    }
    sampling = " ".join(f"`{name}`" for name in SamplingParams.__struct_fields__)
    assert sampling in section("Inboxes").replace("\n", " ")


def test_heartbeats() -> None:
    """Every field of the JSON."""
    expected = [*WorkerStatus.__struct_fields__, *SpeculationTotals.__struct_fields__]
    assert names(section("Heartbeats")) == expected
    assert isinstance(msgspec.structs.fields(WorkerStatus), tuple)


def test_functions() -> None:
    """Every function of the library, and no other."""
    table = {name for row in rows(section("Functions")) for name in names(row[0])}
    assert table == set(re.findall(r"'(outrider_\w+)'", SOURCE))


def test_figures_in_sentences() -> None:
    """Limits that the text repeats."""
    assert f"At most {limits.MAX_FOLLOWERS} gateways follow" in PAGE
    assert f"More than {limits.MAX_DELIVERIES} claims" in PAGE


def commands() -> list[list[str]]:
    """Every redis-cli line of the page, split as a shell would."""
    lines = re.findall(r"^redis-cli (.*)$", PAGE, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def command(start: str) -> list[str]:
    """The one that begins so."""
    (found,) = [words for words in commands() if " ".join(words).startswith(start)]
    return found


@pytest.mark.server
async def test_a_job_with_nothing_but_redis_cli(bus: Bus) -> None:
    """Submit, follow, look around, cancel both ways: the page's own commands."""
    worker = await BusWorker.start(bus)
    assert await bus.call(*command("XADD"))
    (delivery,) = await worker.fetch()
    claim = await worker.claim(delivery)
    assert claim is not None
    await worker.append(claim, tokens(0, 1, 2))
    ((stream, entries),) = await bus.call(*command("XREAD"))
    assert stream == b"outrider:{story-1}:out"
    assert dict(zip(entries[0][1][::2], entries[0][1][1::2], strict=True))[b"ids"] == b"1,2"
    state: Reply = await bus.call(*command("HMGET"))
    assert state == [b"running", str(claim.seed).encode(), b"1", b"target:a", b"2"]
    assert await bus.call(*command("XINFO GROUPS"))
    assert await bus.call(*command("SMEMBERS")) == [b"target:a"]
    await bus.call(*command("HSET"))
    assert (await worker.append(claim)).is_cancelled
    assert await bus.call(*command("FCALL outrider_cancel")) == 1
    await worker.append(claim, Failed("cancelled", "the job was cancelled", status=499))
    assert await bus.call(*command("FCALL outrider_cancel")) == 0
    assert await bus.call(*command("XREVRANGE")) == []
    assert len(commands()) == 8


@pytest.mark.server
async def test_the_hash_and_the_dead_letter_hold_what_the_page_says(bus: Bus) -> None:
    """No field that the page does not name."""
    worker = await BusWorker.start(bus)
    await worker.submit("j", tenant="t", traceparent="p", reply="gateway:g")
    claim = await worker.take()
    await worker.log.cancel("j")
    await worker.append(claim, tokens(0, 1), done())
    listed = {
        name.replace(":C", ":0") for row in rows(section("The job")) for name in names(row[0])
    }
    fields: list[bytes] = await bus.call("HKEYS", bus.keys.job("j"))
    assert {name.decode() for name in fields} == listed - {"deadline_ms"}
    await bus.call("XADD", bus.keys.jobs(), "*", "noise", "x")
    (delivery,) = await worker.fetch()
    await worker.jobs.bury(delivery, reason="unreadable")
    ((_, letter),) = await bus.call("XRANGE", bus.keys.dead, "-", "+")
    assert [name.decode() for name in letter[::2]] == names(section("Dead letters"))
