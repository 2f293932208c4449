"""Text of a row as its tokens arrive: streamed pieces add up to the text, and stop strings cut alike however tokens
fall.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from focus_rag.answers import GenerationSettings
from focus_rag.decoding import RowText
from focus_rag.embedded import embedded_model_folder
from tests.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = frozenset({TOKENIZER.eos_token_id})


def feed(text: str, stop: tuple[str, ...] = (), max_new_tokens: int = 10_000) -> tuple[RowText, list[str]]:
    pieces: list[str] = []
    row = RowText(TOKENIZER, GenerationSettings(stop=stop, max_new_tokens=max_new_tokens), END, pieces.append)
    for token in [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]:
        if row.push(token, 0.0):
            break
    return row, pieces


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet=st.sampled_from("ab \n\u00e9\u4e16\U0001f600"), max_size=160))
def test_pieces_add_up_to_the_text(text):
    row, pieces = feed(text)
    assert row.text == text == "".join(pieces)
    assert row.finish_reason == "stop"
    assert row.ids[-1] == TOKENIZER.eos_token_id


@settings(deadline=None, max_examples=80)
@given(
    st.text(alphabet="abc", max_size=120),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_cut_at_the_earliest_and_are_never_streamed(text, stops):
    row, pieces = feed(text, tuple(stops))
    ends = [text.find(stop) for stop in stops if stop in text]
    # Tokens arrive one by one, so the stop string that is complete first ends the row.
    first_complete = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    assert "".join(pieces) == row.text
    if not ends:
        assert row.text == text
    else:
        seen = text[:first_complete]
        assert row.text == seen[: min(seen.find(stop) for stop in stops if stop in seen)]


def test_long_texts_are_decoded_in_windows_without_a_seam():
    text = "".join(f"line {i} \u00fc \U0001f600\n" for i in range(60))
    row, pieces = feed(text)
    assert row.text == text == "".join(pieces)


@pytest.mark.parametrize("limit", [1, 5])
def test_length_ends_a_row_and_flushes_what_was_held_back(limit):
    row, pieces = feed("ENDLESS", stop=("ENDLESSLY",), max_new_tokens=limit)
    assert (row.text, row.finish_reason) == ("ENDLESS"[:limit], "length")
    assert "".join(pieces) == row.text


def test_raw_text_is_completed_with_the_space_that_stands_between():
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder())
    prompt, said = (
        tokenizer("The mayor")["input_ids"],
        tokenizer("of the old mill" + " and of Veldham" * 20)["input_ids"],
    )
    for continues, expected in ((prompt, " of the old"), ((), "of the old")):
        pieces = []
        row = RowText(tokenizer, GenerationSettings(max_new_tokens=len(said)), END, pieces.append, continues=continues)
        for token in said:
            row.push(token, 0.0)
        assert row.text == "".join(pieces) and row.text.startswith(expected)
        assert row.text.strip() == tokenizer.decode(said).strip() and len(said) > 48


def test_a_prompt_that_ends_within_a_character_leaves_the_text_as_it_is_by_itself():
    ids = TOKENIZER("水x")["input_ids"]
    row = RowText(TOKENIZER, GenerationSettings(), END, continues=ids[:1])
    for token in ids[1:]:
        row.push(token, 0.0)
    row.finish("length")
    assert row.text == TOKENIZER.decode(ids[1:])


def falling_back_to_bytes() -> PreTrainedTokenizerFast:
    """As Llama 2 decodes: a run of bytes of which the end is no character is no text at all."""
    vocabulary = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -5.0) for byte in range(256)), ("\u2581", -2.0)]
    inner = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.text(alphabet="a\U0001f642\u6c34", max_size=6), st.binary(max_size=14)), st.integers(1, 15))
def test_text_in_bytes_is_what_was_said_of_it(said, most):
    tokenizer = falling_back_to_bytes()
    ids = [1 + byte for byte in (said.encode() if isinstance(said, str) else said)]
    pieces = []
    row = RowText(tokenizer, GenerationSettings(max_new_tokens=most), frozenset(), pieces.append)
    for token in ids:
        if row.push(token, 0.0):
            break
    row.finish("length")
    assert "".join(pieces) == row.text
    if isinstance(said, str):
        whole = said.encode()[:most].decode(errors="ignore").strip()
        assert row.text == (
            whole if len(said.encode()) <= most or whole.encode() == said.encode()[:most] else whole + "\ufffd"
        )


def test_special_tokens_stop_an_answer_although_they_are_no_text():
    row = RowText(TOKENIZER, GenerationSettings(stop=("<|user|>", "never")), END)
    for token in TOKENIZER("Paris.<|user|>\nmore text", add_special_tokens=False)["input_ids"]:
        if row.push(token, 0.0):
            break
    assert (row.text, row.finish_reason) == ("Paris.", "stop")
