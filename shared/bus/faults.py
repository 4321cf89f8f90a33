"""What an error of the server, or of the way to it, means for the caller: one table."""

from enum import Enum, auto

from redis import exceptions


class Fault(Enum):
    """What to do about an error."""

    RETRY = auto()  # nothing is wrong with the call: again after a while, same arguments
    RELOAD = auto()  # the server has lost our functions: load them, then again
    REGROUP = auto()  # a consumer group is gone: create it, then again
    FULL = auto()  # the server cannot write now: Unavailable, unless the caller is patient
    CONFIG = auto()  # the operator has to change something: ConfigError
    REFUSED = auto()  # an answer to this one command: the caller's business


_BY_CODE = {
    "LOADING": Fault.RETRY,
    "BUSY": Fault.RETRY,
    "TRYAGAIN": Fault.RETRY,
    "MASTERDOWN": Fault.RETRY,
    "CLUSTERDOWN": Fault.RETRY,
    "READONLY": Fault.RETRY,  # failing over: on a new connection the name may lead elsewhere
    "UNBLOCKED": Fault.RETRY,
    "NOGROUP": Fault.REGROUP,
    "NOSCRIPT": Fault.RELOAD,
    "OOM": Fault.FULL,
    "MISCONF": Fault.FULL,
    "NOREPLICAS": Fault.FULL,
    "NOAUTH": Fault.CONFIG,
    "WRONGPASS": Fault.CONFIG,
    "NOPERM": Fault.CONFIG,
    "CROSSSLOT": Fault.CONFIG,
    "MOVED": Fault.CONFIG,
    "ASK": Fault.CONFIG,
}


def classify(error: Exception) -> Fault:
    """What to do about `error`, raised by redis-py or by the socket below it."""
    text = str(error)
    if "Function not found" in text:
        return Fault.RELOAD
    if isinstance(error, exceptions.RedisError) and error.status_code in _BY_CODE:
        return _BY_CODE[error.status_code]
    if (code := text.partition(" ")[0]) in _BY_CODE:
        return _BY_CODE[code]
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return Fault.CONFIG
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | OSError):
        return Fault.RETRY
    return Fault.REFUSED
