"""A model's conversation format: Jinja in a sandbox, with the names that such templates expect.

The conventions are those of transformers' apply_chat_template, whose import would cost every worker
most of a second; tests hold the two equal.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.common.errors import ClientError


class ChatTemplate:
    """One compiled template.

    Args:
        source: Jinja.
        special_tokens: bos_token and its like, by name.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._template = _environment().from_string(source)
        self._special_tokens = special_tokens

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """The conversation of (role, text), up to where the assistant's answer begins.

        Raises:
            ClientError: the template refuses these messages.
        """
        turns = [{"role": role, "content": text} for role, text in messages]
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=True, **self._special_tokens
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise ClientError(f"the chat template refuses: {error}", param="messages") from error


def source_of(settings: Mapping[str, Any]) -> str | None:
    """The template in tokenizer_config.json: one, or the one named default of several."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401  any JSON value
    return json.dumps(value, ensure_ascii=False, indent=indent)
