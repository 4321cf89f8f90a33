"""Text to token ids and back. Reads tokenizer.json; runs no code of the model's.

A stream shows whole characters only, and nothing that may become a stop string. What is shown after
n tokens is a pure function of these n tokens: another worker takes over by pushing them again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from shared.common.errors import ClientError, ConfigError
from shared.engine.chat_template import ChatTemplate, source_of

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD = 3  # replacement characters that later bytes may still turn into one character
_CONTEXT = 8  # tokens kept before the new one: some tokenizers join words by what stands before
_MAX_WINDOW = 24  # tokens decoded at most for each new one


class TextTokenizer:
    """One model's vocabulary and conversation format. Thread-safe."""

    def __init__(
        self, tokenizer: Tokenizer, settings: dict[str, Any], template: str | None
    ) -> None:
        named = {name: _content(value) for name, value in settings.items() if "_token" in name}
        special = {name: token for name, token in named.items() if isinstance(token, str)}
        self._tokenizer = tokenizer
        self._template = ChatTemplate(template, special) if template else None
        self.vocab_size: int = tokenizer.get_vocab_size()  # added tokens included
        self.fingerprint = _fingerprint(tokenizer)
        self.eos_token_id: int | None = tokenizer.token_to_id(special.get("eos_token", ""))

    @classmethod
    def load(cls, model_dir: Path) -> Self:
        """Read tokenizer.json, and tokenizer_config.json and chat_template.jinja if there are any.

        Raises:
            ConfigError: tokenizer.json is missing, or one of them is unreadable.
        """
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"model {model_dir}: no tokenizer.json in it")
        try:
            settings = _read_object(model_dir / "tokenizer_config.json")
            template = _read_text(model_dir / "chat_template.jinja") or source_of(settings)
            return cls(Tokenizer.from_str(path.read_text("utf-8")), settings, template)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise ConfigError(f"model {model_dir}: unreadable tokenizer: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of a raw prompt, with what the model puts around every text (often a BOS).

        Raises:
            ClientError: the text has lone surrogates.
        """
        _check_unicode(text, param="prompt")
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a conversation of (role, text), up to where the assistant's answer begins.

        Raises:
            ClientError: the model has no chat template, or its template refuses these messages.
        """
        if self._template is None:
            raise ClientError("this model has no chat template: send prompt", param="messages")
        text = self._template.render(messages)
        _check_unicode(text, param="messages")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these ids, without special tokens and ids that the vocabulary lacks."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text


class TextStream:
    """The text of one sequence's output.

    Args:
        tokenizer: of the model.
        prompt_ids: what the output follows; never shown.
        stop_strings: the output ends before the first of them to be complete; never shown.
    """

    def __init__(
        self, tokenizer: TextTokenizer, prompt_ids: Sequence[int], stop_strings: Sequence[str] = ()
    ) -> None:
        self.is_stopped = False  # by a stop string; nothing more is shown
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        self._pending = ""  # whole characters, not shown yet
        self._window = list(prompt_ids[-_CONTEXT:])
        before = tokenizer.decode(self._window)
        if before.endswith(REPLACEMENT):  # a prompt that ends inside a character
            self._window, before = [], ""
        self._num_decoded = len(before)  # characters of the window's text that were passed on

    @property
    def can_stop(self) -> bool:
        """Whether text can end the output."""
        return bool(self._stop_strings)

    def push(self, token_id: int) -> str:
        """Take one token; the text that may be shown now, often empty."""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        end = len(text)
        while end > 0 and len(text) - end < _MAX_HELD and text[end - 1] == REPLACEMENT:
            end -= 1
        new = text[self._num_decoded : end]
        self._num_decoded = max(self._num_decoded, end)
        if len(self._window) > _MAX_WINDOW:
            self._shorten(len(text) - self._num_decoded)
        return self._show(new)

    def flush(self) -> str:
        """The rest: no token will follow. Half a character becomes U+FFFD."""
        text = self._tokenizer.decode(self._window)[self._num_decoded :]
        self._num_decoded += len(text)
        shown = self._show(text)
        rest, self._pending = self._pending, ""
        return shown + rest

    def _shorten(self, num_held: int) -> None:
        """Forget the window's beginning; characters are counted from its end, which stays."""
        del self._window[:-_CONTEXT]
        self._num_decoded = len(self._tokenizer.decode(self._window)) - num_held

    def _show(self, new: str) -> str:
        if self.is_stopped:
            return ""
        if not self._stop_strings:
            return new  # nothing is ever held back
        text = self._pending + new
        found = [(text.find(stop) + len(stop), stop) for stop in self._stop_strings if stop in text]
        if found:
            # First complete, as if characters came one by one; of two at once, the longer one.
            end, stop = min(found, key=lambda match: (match[0], -len(match[1])))
            self.is_stopped, self._pending = True, ""
            return text[: end - len(stop)]
        start = self._start_of_possible_stop(text)
        self._pending = text[start:]
        return text[:start]

    def _start_of_possible_stop(self, text: str) -> int:
        for start in range(len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stop_strings):
                return start
        return len(text)


def _content(token: Any) -> Any:  # noqa: ANN401  JSON: a string, an object or null
    return token.get("content") if isinstance(token, dict) else token


def _read_text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.is_file() else None


def _read_object(path: Path) -> dict[str, Any]:
    content = json.loads(_read_text(path) or "{}")
    if not isinstance(content, dict):
        raise TypeError(f"{path.name} must hold an object")
    return content


def _fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 of all (id, token) pairs: equal if and only if ids mean the same."""
    pairs = sorted((i, token) for token, i in tokenizer.get_vocab(with_added_tokens=True).items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _check_unicode(text: str, *, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ClientError(f"{param} must be valid Unicode: {error}", param=param) from error
