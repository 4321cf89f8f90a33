import pytest
from transformers import PreTrainedTokenizerFast

from shared.common.errors import ClientError
from shared.engine.chat_template import ChatTemplate, source_of
from tests.tiny_models import CHAT_TEMPLATE, train_tokenizer

MESSAGES = [("user", "Hi <b> 'é'"), ("assistant", "Hello!\n"), ("user", "  Again ")]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "ours": CHAT_TEMPLATE,
    "blocks on lines of their own": """
        {% for message in messages %}
            {% if loop.index0 == 1 %}{% continue %}{% endif %}
            [{{ message.role }}] {{ message['content'] | trim }}
        {% endfor %}
        {% if add_generation_prompt %}[assistant]{% endif %}
    """,
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "tools are undefined": "{% if tools %}no{% else %}yes{% endif %}{{ bos_token }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
}


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_templates_render_as_transformers_does(source: str) -> None:
    """The same whitespace rules, filters and loop controls."""
    turns = [{"role": role, "content": text} for role, text in MESSAGES]
    theirs = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers' own gap
        tokenizer_object=train_tokenizer(), **SPECIAL
    )
    expected = theirs.apply_chat_template(
        turns, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate(source, SPECIAL).render(MESSAGES) == expected


def test_the_template_refuses_on_behalf_of_the_client() -> None:
    """raise_exception in a template is an error of the request, in the template's words."""
    with pytest.raises(ClientError, match="no such role: system") as caught:
        ChatTemplate(CHAT_TEMPLATE, SPECIAL).render([("system", "Be brief.")])
    assert caught.value.param == "messages"


REFUSED = {
    "sandbox": "{{ ''.__class__.__mro__ }}",
    "mutation": "{{ messages.append(1) }}",
    "too few messages": "{{ messages[5].content + 'x' }}",
    "wrong type": "{{ messages[0].content + 1 }}",
}


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED.keys())
def test_a_template_that_fails_is_an_error_of_the_request(source: str) -> None:
    """Templates come with downloaded models: they may not touch Python, nor end the worker."""
    with pytest.raises(ClientError, match="the chat template refuses"):
        ChatTemplate(source, SPECIAL).render(MESSAGES)


def test_several_templates_are_chosen_from_by_name() -> None:
    """The one named default; a model may have none at all."""
    entries = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    assert source_of({"chat_template": entries}) == "b"
    assert source_of({"chat_template": "c"}) == "c"
    assert source_of({}) is None
