import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.chat_frames import DONE_FRAME, ChatFrames, completion
from gateway.job import Job, Origin, make_job
from gateway.position import Position, parse_cursor
from gateway.transcript import Entry, Transcript
from shared.common.errors import ClientError
from shared.protocol.records import Failed, Record
from tests.gateway.scripted import SEED, STORY, story, tokens

TEXT = "".join(STORY) + " End"


def make(num_choices: int = 1, **fields: object) -> Job:
    """A job that asks for so many choices."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "n": num_choices}
    return make_job("chatcmpl-1", msgspec.json.encode(body | fields), Origin(created_ms=1_000))


def log(records: list[Record]) -> list[Entry]:
    """Records with the ids a server would give."""
    return [(f"{1_100 + 10 * number}-0", record) for number, record in enumerate(records)]


def frames(job: Job, entries: list[Entry], seen: Position | None = None) -> list[bytes]:
    """All frames of a log, one by one."""
    made = ChatFrames(job, seen)
    data = made.opening() + made.add(entries)
    return [frame + b"\n\n" for frame in data.split(b"\n\n")[:-1]]


def cursor_of(frame: bytes) -> str | None:
    """The id of a frame."""
    first = frame.split(b"\n", 1)[0]
    return first[4:].decode() if first.startswith(b"id: ") else None


def chunk_of(frame: bytes) -> ChatCompletionChunk:
    """A frame as the official client's type, strictly."""
    return ChatCompletionChunk.model_validate_json(frame.split(b"data: ", 1)[1], strict=True)


@pytest.mark.parametrize("num_choices", [1, 2, 3])
@pytest.mark.parametrize("options", [{"include_usage": True}, None], ids=["usage", "no-usage"])
def test_a_stream_continues_after_any_frame(
    num_choices: int, options: dict[str, bool] | None
) -> None:
    """For every frame a client may have seen last, the rest is the rest, byte for byte."""
    job = make(num_choices, stream_options=options)
    entries = log(story(num_choices))
    whole = frames(job, entries)
    for number, frame in enumerate(whole[:-1], 1):
        cursor = cursor_of(frame)
        assert cursor is not None
        assert frames(job, entries, parse_cursor(cursor, num_choices)) == whole[number:]


@pytest.mark.parametrize("num_choices", [1, 2, 3])
def test_every_chunk_is_what_the_official_client_parses(num_choices: int) -> None:
    """Chunks validate strictly, and add up to the text of every choice."""
    job = make(num_choices, stream_options={"include_usage": True})
    chunks = [chunk_of(frame) for frame in frames(job, log(story(num_choices)))[:-1]]
    texts = [""] * num_choices
    reasons: list[str | None] = [None] * num_choices
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [TEXT] * num_choices
    assert reasons == ["stop"] * num_choices
    assert {(chunk.id, chunk.created) for chunk in chunks} == {("chatcmpl-1", 1)}


def test_with_usage_the_figures_have_a_chunk_of_their_own() -> None:
    """OpenAI's shape: no choices, the usage; null before."""
    job = make(stream_options={"include_usage": True})
    made = frames(job, log(story()))
    assert made[-1] == DONE_FRAME
    last = chunk_of(made[-2])
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(STORY)
    assert b'"usage":null' in made[0]


def test_without_usage_the_last_choice_brings_the_figures() -> None:
    """No chunk without choices for clients that did not ask for one."""
    made = frames(make(), log(story()))
    last = chunk_of(made[-2])
    assert last.choices[0].finish_reason == "stop"
    assert last.usage is None
    extra = last.model_extra or {}
    assert extra["seed"] == SEED
    assert extra["metrics"]["speculative_decoding"]["mean_acceptance_length"] == 2.5
    assert b'"usage"' not in b"".join(made)


def test_continuous_usage_counts_tokens_in_every_chunk() -> None:
    """vLLM's option: benchmarks count tokens, not chunks."""
    job = make(stream_options={"include_usage": True, "continuous_usage_stats": True})
    entries = log(tokens("a", "b", "c", per_record=2))
    counts = [chunk_of(frame).usage for frame in frames(job, entries)]
    assert [usage.completion_tokens for usage in counts if usage] == [0, 2, 3]


def test_text_that_is_held_back_makes_no_frame() -> None:
    """A record without text moves the cursor of the next frame."""
    made = frames(make(), log(tokens("a", "", "b")))
    assert [cursor_of(frame) for frame in made] == ["0", "1", "3"]


def test_a_failure_ends_the_stream_with_an_error() -> None:
    """The official client raises on it."""
    made = frames(make(), log([*tokens("a"), Failed("x", "broken", "p", 500)]))
    error = msgspec.json.decode(made[-2].split(b"data: ", 1)[1])["error"]
    assert error == {"message": "broken", "type": "server_error", "param": "p", "code": "x"}
    assert made[-1] == DONE_FRAME


def test_a_cursor_inside_a_record_is_refused() -> None:
    """No frame ended there; guessing would repeat or lose text."""
    with pytest.raises(ClientError) as caught:
        frames(make(), log(tokens("a", "b", per_record=2)), parse_cursor("1", 1))
    assert caught.value.code == "invalid_cursor"


@given(st.data())
def test_frames_do_not_depend_on_how_entries_arrive(data: st.DataObject) -> None:
    """One at a time, in batches or all at once: the same bytes."""
    entries = log(story(2))
    job = make(2, stream_options={"include_usage": True})
    made = ChatFrames(job)
    parts = [made.opening()]
    rest = entries
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        parts.append(made.add(rest[:size]))
        rest = rest[size:]
    assert b"".join(parts) == b"".join(frames(job, entries))


def test_a_whole_completion_is_what_the_official_client_parses() -> None:
    """The JSON of an answer validates strictly."""
    transcript = Transcript(2)
    for entry in log(story(2)):
        transcript.add(entry)
    found = ChatCompletion.model_validate_json(completion(make(2), transcript), strict=True)
    assert [choice.message.content for choice in found.choices] == [TEXT, TEXT]
    assert found.usage is not None
    assert found.usage.prompt_tokens_details is not None
    assert found.usage.prompt_tokens_details.cached_tokens == 2
    assert found.usage.completion_tokens_details is not None
    assert found.usage.completion_tokens_details.accepted_prediction_tokens == 6
    assert found.usage.completion_tokens_details.rejected_prediction_tokens == 6


@given(text=st.text(min_size=1), model=st.sampled_from(["m", '"content":""', 'a\\"content":"b']))
@pytest.mark.parametrize("options", [{"include_usage": True}, None], ids=["usage", "no-usage"])
def test_any_text_is_framed_as_json_of_its_chunk(
    options: dict[str, bool] | None, model: str, text: str
) -> None:
    """What is the same in every frame is made once; each is still what encoding a chunk gives."""
    job = make(2, model=model, stream_options=options)
    entries = log(tokens(text, "b", choice=1))
    for frame, content in zip(frames(job, entries)[1:], (text, "b"), strict=True):
        data = frame.split(b"data: ", 1)[1]
        usage = {} if options is None else {"usage": None}
        choice = {"index": 1, "delta": {"content": content}, "finish_reason": None}
        chunk: dict[str, object] = {"id": "chatcmpl-1", "created": 1, "model": model}
        chunk |= {"choices": [choice | {"logprobs": None}], **usage}
        assert data == msgspec.json.encode(chunk | {"object": "chat.completion.chunk"}) + b"\n\n"
