import asyncio
import io
import os

import httpx
import msgspec
import pytest

from stack.demo import FIRST_PROMPT, Conversation, DemoConfig, converse
from stack.terminal import Lines, Terminal

DONE = b"data: [DONE]\n\n"


class Service:
    """A gateway that answers each request with the next canned response."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.asked: list[list[dict[str, str]]] = []
        self.out = io.StringIO()
        self.notes = io.StringIO()
        self.terminal = Terminal(self.out, self.notes)
        transport = httpx.MockTransport(self.respond)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://gateway")

    def respond(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(msgspec.json.decode(request.content)["messages"])
        return self.answers.pop(0)

    def conversation(self) -> Conversation:
        return Conversation(self.client, self.terminal, DemoConfig())


def says(text: str) -> httpx.Response:
    chunk = {"choices": [{"delta": {"content": text}}]}
    return httpx.Response(200, content=b"data: " + msgspec.json.encode(chunk) + b"\n\n" + DONE)


def refuses(code: str) -> httpx.Response:
    return httpx.Response(400, json={"error": {"message": "no", "code": code}})


async def test_each_turn_carries_the_ones_before() -> None:
    """It is a conversation, not a list of questions."""
    service = Service(says("A"), says("B"))
    conversation = service.conversation()
    assert await conversation.say("one")
    assert await conversation.say("two")
    assert [turn["content"] for turn in service.asked[1]] == ["one", "A", "two"]
    assert service.out.getvalue() == "A\nB\n"


async def test_a_turn_that_failed_is_told_and_forgotten() -> None:
    """The next line starts from what was answered."""
    service = Service(refuses("invalid_value"), says("B"))
    conversation = service.conversation()
    assert not await conversation.say("one")
    assert await conversation.say("two")
    assert [turn["content"] for turn in service.asked[1]] == ["two"]
    assert service.notes.getvalue() == "error: no\n"


async def test_the_oldest_turn_makes_room() -> None:
    """A long conversation goes on when the model's context is full."""
    service = Service(says("A"), refuses("context_length_exceeded"), says("B"))
    conversation = service.conversation()
    await conversation.say("one")
    assert await conversation.say("two")
    assert [turn["content"] for turn in service.asked[2]] == ["two"]


async def test_a_prompt_that_never_fits_ends() -> None:
    """With nothing left to forget, the error is told."""
    service = Service(refuses("context_length_exceeded"))
    assert not await service.conversation().say("one")


@pytest.mark.parametrize("typed", [b"more\n\n", b"more\n/quit\nlost\n", b"more"])
async def test_chatting_ends_with_an_empty_line_a_word_or_the_end(typed: bytes) -> None:
    """After the first story, one answer a line."""
    service = Service(says("A"), says("B"))
    reader, writer = os.pipe()
    os.write(writer, typed)
    os.close(writer)
    async with asyncio.timeout(10):
        await converse(service.conversation(), service.terminal, Lines(reader))
    os.close(reader)
    assert service.asked[0][0]["content"] == FIRST_PROMPT
    assert service.asked[1][-1]["content"] == "more"
    assert service.answers == []
