import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from models.recipe.vocabulary import END_ID
from shared.common.errors import ClientError, ConfigError
from shared.engine.text import TextStream, TextTokenizer
from tests.tiny_models import save_tokenizer, train_tokenizer

BYTE_LEVEL = TextTokenizer(train_tokenizer(), {}, None)
TOKEN_IDS = st.lists(st.integers(0, train_tokenizer().get_vocab_size() - 1), max_size=60)
WORDS = st.lists(
    st.sampled_from(
        ["Once", " upon", " 😀😀", "é", " ", "☕", "The end.", "�", "👩‍👩‍👧", "\n", "ab"]
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_tokenizer(directory)
    return directory


def shown(stream: TextStream, token_ids: Sequence[int]) -> str:
    return "".join(stream.push(token_id) for token_id in token_ids) + stream.flush()


def bytewise(character: str) -> list[int]:
    """One token a byte."""
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(character)
    return [train_tokenizer().get_vocab()[symbol] for piece, _ in alphabet for symbol in piece]


def cut(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string to be complete, character by character."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stop_strings if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@settings(deadline=None)
@given(TOKEN_IDS, TOKEN_IDS)
def test_any_tokens_add_up_to_their_text(prompt_ids: list[int], token_ids: list[int]) -> None:
    """Random bytes, broken characters and special tokens: the parts are the whole."""
    text = shown(TextStream(BYTE_LEVEL, prompt_ids), token_ids)
    assert text == train_tokenizer().decode(token_ids, skip_special_tokens=True)


BYTES = [i for character in "a\u0080é☕😀" for i in bytewise(character)]


@settings(deadline=None)
@given(st.lists(st.sampled_from(BYTES), max_size=80))
def test_long_runs_of_broken_bytes_are_shown_piece_by_piece(token_ids: list[int]) -> None:
    """Garbage is garbage, the same as all at once, and does not pile up."""
    stream = TextStream(BYTE_LEVEL, [])
    assert shown(stream, token_ids) == BYTE_LEVEL.decode(token_ids)
    assert len(stream._window) <= 24


@settings(deadline=None)
@given(WORDS, st.lists(st.text("the .😀n\n", min_size=1, max_size=6), max_size=4))
def test_text_ends_before_the_first_stop_string(text: str, stop_strings: list[str]) -> None:
    """Wherever token boundaries fall: one token a byte, or as the tokenizer makes them."""
    whole = train_tokenizer().encode(text).ids
    single = [i for byte in text for i in bytewise(byte)]
    for token_ids in (whole, single):
        stream = TextStream(BYTE_LEVEL, [5], stop_strings)
        assert shown(stream, token_ids) == cut(text, stop_strings)
        assert stream.is_stopped == any(stop in text for stop in stop_strings)


@settings(deadline=None)
@given(TOKEN_IDS, st.lists(st.text("aeo t", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_a_function_of_the_tokens(
    token_ids: list[int], stop_strings: list[str]
) -> None:
    """A second worker that pushes the same tokens shows the same at each of them."""
    first, second = (TextStream(BYTE_LEVEL, [7], stop_strings) for _ in range(2))
    assert [first.push(i) for i in token_ids] == [second.push(i) for i in token_ids]
    assert first.flush() == second.flush()


@settings(deadline=None)
@given(TOKEN_IDS)
def test_text_without_stop_strings_is_shown_at_once(token_ids: list[int]) -> None:
    """Nothing is held back but the bytes of an unfinished character."""
    stream, text = TextStream(BYTE_LEVEL, []), ""
    for index, token_id in enumerate(token_ids, 1):
        text += stream.push(token_id)
        complete = BYTE_LEVEL.decode(token_ids[:index]).rstrip("�")
        assert text.startswith(complete)


def test_a_character_waits_for_its_last_byte() -> None:
    """No replacement character is ever shown for a character that is still coming."""
    stream = TextStream(BYTE_LEVEL, [])
    assert [stream.push(token_id) for token_id in bytewise("😀")] == ["", "", "", "😀"]


def test_a_possible_stop_string_waits_until_it_is_decided() -> None:
    """Text is held only as long as it may still become a stop string."""
    stream = TextStream(BYTE_LEVEL, [], ["###", "#!"])
    parts = [stream.push(token_id) for character in "a##b#" for token_id in bytewise(character)]
    assert parts == ["a", "", "", "##b", ""]
    assert stream.flush() == "#"
    assert not stream.is_stopped


def test_nothing_is_shown_after_a_stop_string() -> None:
    """The token that completes it may hold more; later tokens change nothing."""
    stream = TextStream(BYTE_LEVEL, [], ["end"])
    token_ids = train_tokenizer().encode("The end. The end.").ids
    assert shown(stream, token_ids) == "The "
    assert stream.is_stopped
    assert (stream.push(token_ids[0]), stream.flush()) == ("", "")


def test_special_tokens_are_hidden() -> None:
    """An end token in the output is not text."""
    token_ids = [*train_tokenizer().encode("Once").ids, END_ID]
    assert shown(TextStream(BYTE_LEVEL, []), token_ids) == "Once"


def test_a_prompt_that_ends_inside_a_character_is_no_context() -> None:
    """The rest of that character is shown as broken; what follows is whole."""
    first, *rest = bytewise("é")
    text = shown(TextStream(BYTE_LEVEL, [first]), [*rest, *train_tokenizer().encode("!").ids])
    assert text == "�!"


@settings(deadline=None)
@given(st.lists(st.sampled_from(["▁a", "b", "▁", "c", "<0xC3>", "<0xA9>"]), max_size=60))
def test_other_tokenizers_stream_too(symbols: list[str]) -> None:
    """SentencePiece style: spaces belong to words, and depend on what stands before."""
    vocabulary = {symbol: i for i, symbol in enumerate(["▁a", "b", "▁", "c", "<0xC3>", "<0xA9>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    whole = "".join(symbols).replace("<0xC3><0xA9>", "é")
    if "<0x" in whole:  # broken bytes change the text before them: nobody can stream that
        return
    stream = TextStream(TextTokenizer(tokenizer, {}, None), [0])
    text = shown(stream, [vocabulary[symbol] for symbol in symbols])
    assert text == whole.replace("▁", " ")


def test_a_prompt_is_encoded_as_transformers_does(model_dir: Path) -> None:
    """The same ids, size and end token."""
    theirs = transformers.AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    tokenizer = TextTokenizer.load(model_dir)
    assert tokenizer.encode("Once 😀 upon") == theirs.encode("Once 😀 upon")
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (len(theirs), theirs.eos_token_id)


CONVERSATIONS = [
    [("user", "Tell me a story.")],
    [("user", "Hi 😀"), ("assistant", "Hello!"), ("user", "<|endoftext|> again")],
]


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one turn", "three turns"])
def test_a_chat_is_encoded_as_transformers_does(
    model_dir: Path, messages: list[tuple[str, str]]
) -> None:
    """The same ids as apply_chat_template gives."""
    theirs = transformers.AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    turns = [{"role": role, "content": text} for role, text in messages]
    expected = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert TextTokenizer.load(model_dir).encode_chat(messages) == expected


def test_a_model_without_a_template_takes_prompts_only() -> None:
    """The error says what to send instead."""
    with pytest.raises(ClientError, match="no chat template: send prompt"):
        BYTE_LEVEL.encode_chat([("user", "Hi")])


def test_lone_surrogates_are_the_clients_error(model_dir: Path) -> None:
    """They are no Unicode text, and the field is named."""
    tokenizer = TextTokenizer.load(model_dir)
    with pytest.raises(ClientError, match="prompt must be valid Unicode"):
        tokenizer.encode("a\ud800")
    with pytest.raises(ClientError, match="messages must be valid Unicode"):
        tokenizer.encode_chat([("user", "a\ud800")])


def test_raw_prompts_get_what_the_model_puts_around_texts() -> None:
    """A post-processor's BOS comes before a raw prompt; a chat template writes its own."""
    tokenizer = Tokenizer.from_str(train_tokenizer().to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", END_ID)]
    )
    text = TextTokenizer(tokenizer, {}, "{{ messages[0]['content'] }}")
    assert text.encode("Once")[0] == END_ID
    assert text.encode("Once")[1:] == text.encode_chat([("user", "Once")])


def test_templates_are_found_where_models_keep_them(tmp_path: Path) -> None:
    """A file of its own first, then the configuration: one template, or several by name."""
    save_tokenizer(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "b"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert TextTokenizer.load(tmp_path).encode_chat([]) == bytewise("b")
    (tmp_path / "chat_template.jinja").write_text("a")
    assert TextTokenizer.load(tmp_path).encode_chat([]) == bytewise("a")


def test_special_tokens_may_be_objects(tmp_path: Path) -> None:
    """Older configurations write {"content": …}; null is no token."""
    save_tokenizer(tmp_path)
    tokens = {"eos_token": {"content": "<|user|>"}, "bos_token": None}
    template = "{{ eos_token }}{{ bos_token }}{{ messages | tojson }}"
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(tokens | {"chat_template": template}))
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.eos_token_id == 1
    assert tokenizer.encode_chat([])[0] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{}"), ("tokenizer_config.json", "[]"), ("chat_template.jinja", "{% if")],
)
def test_an_unreadable_model_is_the_operators_error(
    tmp_path: Path, name: str, content: str
) -> None:
    """The directory is named."""
    save_tokenizer(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=tmp_path.name):
        TextTokenizer.load(tmp_path)


def test_a_directory_without_a_tokenizer_is_the_operators_error(tmp_path: Path) -> None:
    """It says which file is missing."""
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        TextTokenizer.load(tmp_path)


def test_the_fingerprint_names_the_vocabulary(tmp_path: Path) -> None:
    """Equal for the same ids and tokens however the file is written; different for others."""
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")), indent=3, sort_keys=True))
    assert TextTokenizer.load(tmp_path).fingerprint == BYTE_LEVEL.fingerprint
    other = TextTokenizer(train_tokenizer(300), {}, None)
    assert other.fingerprint != BYTE_LEVEL.fingerprint
