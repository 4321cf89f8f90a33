"""Every error we raise on purpose, sorted by who is to blame.

OutriderError
├── ConfigError    the operator: a flag, a file, an environment variable
├── ClientError    the client: a request that cannot be served as sent (HTTP 4xx)
├── PeerError      another process: bytes that are not a message of ours
└── Unavailable    nobody: try again later (HTTP 429 or 503)
"""


class OutriderError(Exception):
    """Root of the tree. Never raised itself."""


class ConfigError(OutriderError):
    """The operator gave a value that cannot work. Names the key, the value and what is allowed."""


class ClientError(OutriderError):
    """A request that cannot be served as it was sent.

    Args:
        message: one sentence for a person.
        param: the field to blame, as a path in the request (`messages[0].content`), or None.
        code: a word for a program (`invalid_value`, `context_length_exceeded`, `model_not_found`).
        status: the HTTP status, 400 to 499.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        status: int = 400,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class PeerError(OutriderError):
    """Another process sent bytes that are no message of ours, or of a version we do not know."""


class Unavailable(OutriderError):
    """Nothing is wrong with the request; there is no room or no server for it now.

    Args:
        message: one sentence for a person.
        retry_after_s: when to try again, in seconds.
        status: 503 when the service lacks capacity, 429 when this client has used its share.
        code: a word for a program.
    """

    def __init__(
        self, message: str, *, retry_after_s: int = 1, status: int = 503, code: str = "overloaded"
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.status = status
        self.code = code
