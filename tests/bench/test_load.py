"""The benches' client (bench/load.py)."""

import asyncio

import pytest

from bench.load import stream_all

FRAMES = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    b'id: 1\ndata: {"choices":[{"delta":{"content":"One"}}]}\n\n'
    b'id: 2\ndata: {"choices":[{"delta":{"content":" day"}}]}\n\n'
    b'id: 2f\ndata: {"choices":[{"delta":{}}]}\n\n'
)
END = b'id: end\ndata: {"choices":[],"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(data: bytes, size: int) -> bytes:
    """A body in chunks of `size` bytes."""
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


async def serve(response: bytes) -> tuple[asyncio.Server, str]:
    """A server that answers every request alike, and its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("size", [1, 63, 1009])
async def test_an_answer_is_put_together_from_chunks_of_any_size(size: int) -> None:
    """Text, tokens and frames are counted the same wherever chunks were cut."""
    server, url = await serve(HEAD + chunked(FRAMES + END, size))
    load = await stream_all(url, "m", ["a", "b", "c"], num_streams=2, temperature=0.0)
    server.close()
    assert [(one.text, one.num_tokens, one.num_frames) for one in load.answers] == 3 * [
        ("One day", 2, 2)
    ]
    assert all(0.0 < one.ttft_s <= one.duration_s for one in load.answers)


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}",
        HEAD + chunked(FRAMES, 63),
        HEAD + chunked(FRAMES + END, 63)[:-20],
    ],
)
async def test_what_is_no_whole_answer_is_an_error(response: bytes) -> None:
    """A refusal, a stream without its end and a torn body are not measured as answers."""
    server, url = await serve(response)
    with pytest.raises(RuntimeError):
        await stream_all(url, "m", ["a"], num_streams=1, temperature=0.0)
    server.close()
