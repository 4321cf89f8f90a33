"""Every error that a server can answer with has its place in the table."""

import pytest
from redis import exceptions
from redis.asyncio.connection import DefaultParser

from shared.bus.faults import Fault, classify

ERRORS = {
    "LOADING Redis is loading the dataset in memory": Fault.RETRY,
    "BUSY Redis is busy running a script. You can only call FUNCTION KILL": Fault.RETRY,
    "TRYAGAIN Multiple keys request during rehashing of slot": Fault.RETRY,
    "MASTERDOWN Link with MASTER is down": Fault.RETRY,
    "CLUSTERDOWN The cluster is down": Fault.RETRY,
    "READONLY You can't write against a read only replica.": Fault.RETRY,
    "UNBLOCKED the stream key no longer exists": Fault.RETRY,
    "ERR max number of clients reached": Fault.RETRY,
    "ERR Function not found": Fault.RELOAD,
    "NOSCRIPT No matching script. Please use EVAL.": Fault.RELOAD,
    "NOGROUP No such key 'x' or consumer group 'target'": Fault.REGROUP,
    "OOM command not allowed when used memory > 'maxmemory'.": Fault.FULL,
    "MISCONF Errors writing to the AOF file: No space left on device": Fault.FULL,
    "NOREPLICAS Not enough good replicas to write.": Fault.FULL,
    "NOAUTH Authentication required.": Fault.CONFIG,
    "WRONGPASS invalid username-password pair or user is disabled.": Fault.CONFIG,
    "NOPERM User outrider has no permissions to run the 'fcall' command": Fault.CONFIG,
    "ERR invalid password": Fault.CONFIG,
    "CROSSSLOT Keys in request don't hash to the same slot": Fault.CONFIG,
    "MOVED 3999 127.0.0.1:6381": Fault.CONFIG,
    "ASK 3999 127.0.0.1:6381": Fault.CONFIG,
    "WRONGTYPE Operation against a key holding the wrong kind of value": Fault.REFUSED,
    "ERR wrong number of arguments for 'xadd' command": Fault.REFUSED,
}


@pytest.mark.parametrize(("line", "fault"), ERRORS.items(), ids=[e.split(".")[0] for e in ERRORS])
def test_server_error(line: str, fault: Fault) -> None:
    """As redis-py turns the error line into an exception."""
    error = DefaultParser.parse_error(line)  # type: ignore[no-untyped-call] # redis-py has no types here
    assert classify(error) is fault


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Connection closed by server."),
        exceptions.TimeoutError("Timeout reading from socket"),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError(),
    ],
    ids=repr,
)
def test_a_broken_connection_is_tried_again(error: Exception) -> None:
    """Whatever was under way may or may not have happened; our calls can be repeated."""
    assert classify(error) is Fault.RETRY
