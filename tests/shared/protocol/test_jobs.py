"""Entries of a jobs stream: fields and back, bounds, names."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.common.errors import ClientError
from shared.protocol.jobs import (
    TRANSITIONS,
    IllegalTransition,
    JobEntry,
    JobState,
    idempotent_id,
    next_state,
    parse_entry,
    readable_id,
)
from shared.protocol.limits import MAX_BODY_BYTES, MAX_ID_CHARS

identifiers = st.from_regex(r"[A-Za-z0-9_.:-]{1,128}", fullmatch=True)
optional = st.just("") | identifiers
entries = st.builds(
    JobEntry,
    job_id=identifiers,
    body=st.binary(min_size=1, max_size=50),
    deadline_ms=st.none() | st.integers(0, 10**15 - 1),
    tenant=optional,
    traceparent=st.text(st.characters(codec="utf-8"), max_size=60),
    reply=optional,
)


def as_bytes(fields: Mapping[str, str | bytes]) -> dict[bytes, bytes]:
    return {k.encode(): v.encode() if isinstance(v, str) else v for k, v in fields.items()}


@given(entries)
def test_round_trip(entry: JobEntry) -> None:
    """What a gateway writes is what a worker reads."""
    assert parse_entry("1-0", as_bytes(entry.to_fields())) == entry


@given(st.dictionaries(st.binary(max_size=9), st.binary(max_size=40)))
def test_whatever_comes_is_an_entry_or_a_client_error(fields: dict[bytes, bytes]) -> None:
    """No fields raise anything else."""
    try:
        parse_entry("1-0", fields)
    except ClientError as error:
        assert error.param is not None  # noqa: PT017 - either outcome is right


NAMES = [b"v", b"id", b"idem", b"body", b"tenant", b"reply", b"deadline_ms", b"traceparent"]


@given(st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=200)))
def test_hostile_values_of_known_fields(fields: dict[bytes, bytes]) -> None:
    """The same, past the first check; a name that is read is one that fits a key."""
    name = readable_id("1-0", fields)
    assert name is None or (len(name) <= MAX_ID_CHARS and not set("{}* \n") & set(name))
    try:
        assert parse_entry("1-0", fields).job_id == name
    except ClientError as error:
        assert error.param is not None  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "body", "invalid_value"),
        ({"body": ""}, "body", "invalid_value"),
        ({"body": b"x" * (MAX_BODY_BYTES + 1)}, "body", "too_large"),
        ({"body": "{}", "v": "2"}, "v", "unsupported_version"),
        ({"body": "{}", "id": "a b"}, "id", "invalid_value"),
        ({"body": "{}", "id": "x" * (MAX_ID_CHARS + 1)}, "id", "invalid_value"),
        ({"body": "{}", "id": b"\xff"}, "id", "invalid_value"),
        ({"body": "{}", "tenant": "{t}"}, "tenant", "invalid_value"),
        ({"body": "{}", "idem": "x\n"}, "idem", "invalid_value"),
        ({"body": "{}", "reply": "*"}, "reply", "invalid_value"),
        ({"body": "{}", "deadline_ms": "-1"}, "deadline_ms", "invalid_value"),
        ({"body": "{}", "deadline_ms": "1e9"}, "deadline_ms", "invalid_value"),
        ({"body": "{}", "deadline_ms": "1" * 16}, "deadline_ms", "invalid_value"),
        ({"body": "{}", "deadline_ms": "\u0661"}, "deadline_ms", "invalid_value"),
    ],
    ids=str,
)
def test_a_bad_field_is_named(fields: dict[str, str | bytes], param: str, code: str) -> None:
    """With a code for a program."""
    with pytest.raises(ClientError) as caught:
        parse_entry("1-0", as_bytes(fields))
    assert (caught.value.param, caught.value.code) == (param, code)


def test_a_job_is_named_by_id_then_key_then_entry() -> None:
    """One idempotency key is one job within a tenant, and another one for another tenant."""
    body = {"body": "{}"}
    assert parse_entry("1-0", as_bytes(body)).job_id == "1-0"
    named = parse_entry("1-0", as_bytes({**body, "idem": "k", "tenant": "t"}))
    assert named.job_id == idempotent_id("t", "k") != idempotent_id("u", "k")
    assert parse_entry("1-0", as_bytes({**body, "idem": "k", "id": "own"})).job_id == "own"
    assert idempotent_id("a\nb", "c") != idempotent_id("a", "c")


@pytest.mark.parametrize("state", [None, *JobState])
@pytest.mark.parametrize("event", ["claimed", "committed", "released", "done", "failed", "x"])
def test_the_table_of_states(state: JobState | None, event: str) -> None:
    """What is in the table happens; everything else is a bug."""
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransition, match=event):
            next_state(state, event)
