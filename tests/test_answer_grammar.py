"""Answers that follow a JSON Schema, whatever the model would rather say."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import BaseModel, Field

pytest.importorskip("llguidance")

from focus_rag import FocusGenerator, GenerationSettings, InvalidInputError, Passage, Request, answer_grammar
from focus_rag.answer_grammar import AnswerGrammar
from focus_rag.decoding import RowText
from focus_rag.errors import MissingDependencyError
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = frozenset({TOKENIZER.eos_token_id})
QUESTION, PASSAGES = (
    "When was the mill built?",
    [Passage("The mill was built in 1841.", 0.9), Passage("The bakery is old.", 0.4)],
)


class Source(BaseModel):
    title: str = Field(max_length=6)
    page: int = Field(ge=1, le=99)


class Reply(BaseModel):
    answer: str = Field(max_length=12)
    kind: str = Field(pattern="^(date|name)$")
    sure: bool
    sources: list[Source] = Field(max_length=2)


CHOICE = {"enum": ["1841", "1902", "not stated"]}


@pytest.fixture(scope="module")
def generator() -> FocusGenerator:
    model = tiny_model(
        vocab_size=300, max_position_embeddings=1024, seed=3
    )  # more logits than the tokenizer has tokens
    return FocusGenerator(
        model, TOKENIZER, tiny_profile(model), alpha=0.5, settings=GenerationSettings(max_new_tokens=200)
    )


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_what_a_random_model_says_is_read_by_the_class(generator, seed):
    options: dict[str, Any] = {} if seed is None else {"temperature": 1.0, "seed": seed}
    answer = generator.answer(QUESTION, PASSAGES, json_schema=Reply, **options)
    assert answer.finish_reason == "stop" and answer.alpha == 0.5
    reply = Reply.model_validate_json(answer.text)
    assert answer.text == json.dumps(reply.model_dump(), ensure_ascii=False) or "\\" in answer.text
    # It ends with the brace; nobody has to say so.
    assert (
        answer.usage.completion_tokens == len(TOKENIZER.encode(answer.text, add_special_tokens=False))
        or "\N{REPLACEMENT CHARACTER}" in answer.text
    )
    assert "".join(generator.stream(QUESTION, PASSAGES, json_schema=Reply, **options)) == answer.text
    assert (
        asyncio.run(generator.aanswer(QUESTION, PASSAGES, json_schema=Reply.model_json_schema(), **options)).text
        == answer.text
    )


def test_rows_of_a_batch_follow_each_their_own(generator):
    settings = [
        GenerationSettings(max_new_tokens=200, json_schema=schema)
        for schema in (Reply, None, CHOICE, {"type": "integer", "minimum": 0, "maximum": 50})
    ]
    requests = [Request(question=QUESTION, passages=PASSAGES, settings=one) for one in settings]
    answers = generator.answer_batch(requests)
    assert [one.text for one in answers] == [generator.run(request).text for request in requests]
    Reply.model_validate_json(answers[0].text)
    assert answers[1].text == generator.answer(QUESTION, PASSAGES).text
    assert json.loads(answers[2].text) in CHOICE["enum"] and 0 <= json.loads(answers[3].text) <= 50


def test_an_answer_that_is_cut_off_says_so(generator):
    answer = generator.answer(QUESTION, PASSAGES, json_schema=Reply, max_new_tokens=4)
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 4) and answer.text.startswith('{"a')


def test_only_what_is_whole_may_end():
    grammar = AnswerGrammar({"type": "integer", "minimum": 0, "maximum": 50}, TOKENIZER)
    digits = {digit: TOKENIZER.encode(digit, add_special_tokens=False)[0] for digit in "0123456789"}

    def allowed() -> set[int]:
        return set(
            grammar.allowed(300, [*END, 5000]).nonzero().flatten().tolist()
        )  # some models name ends that they do not have

    assert allowed() == set(digits.values())
    grammar.take(digits["5"])
    assert allowed() == {digits["0"], *END} and not grammar.is_complete
    assert grammar.allowed(200, END).shape == (200,)  # fewer logits than tokens
    grammar.take(digits["0"])
    assert grammar.is_complete and not grammar.is_lost


@pytest.mark.parametrize(
    ("begun", "closes"),
    [
        ('{"a": "mill', '"'),
        ('{"a": "mi\\', None),  # a pending escape
        ('{"a": "mi, {', '"'),
        ('{"a": "mill", "c": [', "]"),
        ('{"a": "x", "e": [', "]"),
        ('{"a": "mill"', "}"),
        ('{"a": "mill", "b": 12', "}"),
        ('{"a": "mill", "c": [1', "]"),
        ('{"a": "mill", "d": "x', None),  # too short to end
        ('{"a":', " "),
    ],
)
def test_what_closes_what_is_open(begun: str, closes: str | None) -> None:
    own = {
        "a": {"type": "string"},
        "b": {"type": "integer"},
        "c": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        "d": {"type": "string", "minLength": 4},
        "e": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
    }
    grammar = AnswerGrammar({"type": "object", "properties": own, "required": ["a"]}, TOKENIZER)
    for token in TOKENIZER.encode(begun, add_special_tokens=False):
        grammar.take(token)
    allowed = grammar.allowed(300, END)
    closing = grammar.closing(allowed)
    if closes is None:
        assert closing.equal(allowed)
    else:
        assert TOKENIZER.decode(closing.nonzero().flatten()) == closes


def test_a_model_that_would_rather_end_ends_its_answer() -> None:
    """Its favourite token is the end wherever that may come, and a letter where it may not: no text of its own ends."""
    row = RowText(TOKENIZER, GenerationSettings(max_new_tokens=60), END, grammar=AnswerGrammar(
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"]}, TOKENIZER
    ))  # fmt: skip
    scores = torch.zeros(300)
    scores[TOKENIZER.convert_tokens_to_ids("q")], scores[[*END]] = 1.0, 2.0
    while (allowed := row.allowed(scores)) is not None:
        row.push(int(scores.masked_fill(~allowed, -torch.inf).argmax()), 0.0)
    row.finish("length")
    assert row.finish_reason == "stop" and json.loads(row.text).keys() == {"a", "b"}


def follows(schema: dict[str, Any], text: str) -> bool:
    grammar = AnswerGrammar(schema, TOKENIZER)
    for token in TOKENIZER.encode(text, add_special_tokens=False):
        if not grammar.allowed(300, END)[token]:
            return False
        grammar.take(token)
    return True


INNER = {"type": "object", "properties": {"b": {"type": "null"}}}
EXTENDED = {
    "allOf": [{"$ref": "#/$defs/base"}, {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}]
}
BASE = {"base": {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}}


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"type": "object", "properties": {"a": INNER}}, '{"a": {"b": null}}', True),
        ({"type": "object", "properties": {"a": INNER}}, '{"c"', False),
        (
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/inner"}}, "$defs": {"inner": INNER}},
            '{"a": {"c"',
            False,
        ),
        ({"type": "object", "properties": {"a": INNER}, "additionalProperties": {"type": "null"}}, '{"c": null}', True),
        (
            {"type": "object", "properties": {"properties": {"type": "null"}, "format": {"type": "null"}}},
            '{"properties": null, "format": null}',
            True,
        ),
        # Objects put together of several parts, none of which can say that there is no more.
        ({**EXTENDED, "$defs": BASE}, '{"a": null, "b": null}', True),
        ({"anyOf": [EXTENDED, {"type": "null"}], "$defs": BASE}, '{"a": null, "b": null}', True),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "null"}},
                "anyOf": [{"properties": {"b": {"type": "null"}}, "required": ["b"]}],
            },
            '{"a": null, "b": null}',
            True,
        ),
        (
            {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a", "b"]},
            '{"a": null, "b": 1}',
            True,
        ),
        # What cannot be held and is only remarked.
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "[null, null]", True),
        ({"type": "string", "format": "path"}, '"/tmp"', True),
        ({"type": "string", "format": "date"}, '"/tmp"', False),
        ({"const": {"format": "path", "uniqueItems": True}}, '{"format": "path", "uniqueItems": true}', True),
    ],
)
def test_what_a_schema_says_is_what_may_be_written(schema, text, expected):
    assert follows(schema, text) == expected


def nested(depth: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": nested(depth - 1)}} if depth else {"type": "null"}


def cyclic() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    return schema


REFUSED = [
    {"type": "strin"}, {"not": {"type": "string"}}, {"type": "string", "pattern": "(?=a)b"}, {"$ref": "http://example.org/s"}, {"enum": [{1}]},
    {"$ref": "#"}, nested(300), cyclic(),
    {"type": "integer", "multipleOf": 9_999_991}, {"type": "number", "multipleOf": 0.0000001},
    {"type": "number", "multipleOf": 10**400},
    {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 997}, "b": {"type": "integer", "multipleOf": 991}}},
    {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (97, 101, 103)]},
]  # fmt: skip


@pytest.mark.parametrize("schema", REFUSED, ids=range(len(REFUSED)))
def test_a_schema_that_cannot_be_followed_is_refused_and_costs_the_others_nothing(generator, schema):
    with pytest.raises(InvalidInputError, match="JSON Schema"):
        AnswerGrammar(schema, TOKENIZER)
    with pytest.raises(InvalidInputError) as told:
        generator.answer(QUESTION, json_schema=schema)
    assert str(told.value).count("JSON Schema") == 1
    good = Request(question=QUESTION, passages=PASSAGES, settings=GenerationSettings(max_new_tokens=5))
    bad = Request(
        question=QUESTION, passages=PASSAGES, settings=GenerationSettings(max_new_tokens=5, json_schema=schema)
    )
    answer, error = generator.answer_batch([good, bad], return_errors=True)
    assert answer == generator.run(good) and isinstance(error, InvalidInputError)


def test_small_multiples_are_held(generator):
    answer = generator.answer(
        QUESTION, json_schema={"type": "integer", "multipleOf": 25, "minimum": 0, "maximum": 9999}
    )
    assert json.loads(answer.text) % 25 == 0


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_a_schema_that_is_lost_on_the_way_costs_the_others_nothing(generator, monkeypatch, options, caplog):
    """As one of extreme complexity is: its row is cut off, and says so."""
    plain = GenerationSettings(max_new_tokens=12, **options)
    asked = [
        Request(question=QUESTION, passages=PASSAGES, settings=plain),
        Request(question=QUESTION, passages=PASSAGES, settings=plain.changed({"json_schema": Reply})),
    ]
    alone = generator.run(asked[0])
    taken = AnswerGrammar.take
    counts: dict[int, int] = {}

    def take(self: AnswerGrammar, token: int) -> None:
        counts[id(self)] = counts.get(id(self), 0) + 1
        taken(self, token if counts[id(self)] < 4 else 5)  # a token that nothing allows

    monkeypatch.setattr(AnswerGrammar, "take", take)
    whole, cut = generator.answer_batch(asked)
    assert (whole.text, whole.usage, whole.finish_reason) == (alone.text, alone.usage, alone.finish_reason)
    assert cut.finish_reason == "length" and cut.text == '{"an' and "no longer be followed" in caplog.text


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_what_the_models_own_configuration_rules_out_gives_way(options):
    model = tiny_model(vocab_size=300, max_position_embeddings=1024, seed=3)
    model.generation_config.suppress_tokens = TOKENIZER.encode('"', add_special_tokens=False)
    generator = FocusGenerator(model, TOKENIZER, settings=GenerationSettings(max_new_tokens=40))
    assert json.loads(generator.answer(QUESTION, json_schema=CHOICE, **options).text) in CHOICE["enum"]


def test_stop_strings_do_not_cut_what_follows_a_schema(generator):
    answer = generator.answer(QUESTION, json_schema={"enum": ["a b", "a c"]}, stop=["a"])
    assert json.loads(answer.text) in ("a b", "a c")


@pytest.mark.parametrize(
    "wrong", [BaseModel, type("Odd", (BaseModel,), {"__annotations__": {"call": Callable[[int], int]}})]
)
def test_a_class_without_a_schema_is_refused(wrong):
    with pytest.raises(InvalidInputError, match="has no JSON Schema"):
        GenerationSettings().changed({"json_schema": wrong})


@pytest.mark.parametrize("schema", ["{}", 5, [1]])
def test_a_schema_is_a_mapping_or_a_class(schema):
    with pytest.raises(InvalidInputError, match="json_schema"):
        GenerationSettings().changed({"json_schema": schema})


def test_without_llguidance_it_is_said_what_brings_it(generator, monkeypatch):
    free = generator.answer(QUESTION, max_new_tokens=3).text
    monkeypatch.setitem(sys.modules, "llguidance", None)
    answer_grammar._llguidance.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match=r"focus-rag\[structured\]"):
            generator.answer(QUESTION, json_schema=CHOICE)
        assert generator.answer(QUESTION, max_new_tokens=3).text == free
    finally:
        answer_grammar._llguidance.cache_clear()


def test_logits_are_left_as_they_are_where_a_token_may_come(generator):
    """Among what may come, the model chooses: with every token allowed that it would have said, it says the same."""
    free = generator.answer(QUESTION, PASSAGES, max_new_tokens=12)
    texts = TOKENIZER.decode(TOKENIZER.encode(free.text, add_special_tokens=False)[:3])
    held = generator.answer(QUESTION, PASSAGES, max_new_tokens=40, json_schema={"enum": [texts, "something else"]})
    assert json.loads(held.text) in (texts, "something else")
    first = AnswerGrammar(CHOICE, TOKENIZER).allowed(300, END)
    assert first.dtype == torch.bool and int(first.sum()) == 1  # the quotation mark
