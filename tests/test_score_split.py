"""Split softmax on the best scored passages: which ones these are, and that a generator with it answers as the oracle form would."""

from __future__ import annotations

import asyncio

import pytest
import torch
from pydantic import ValidationError

from focus_rag import (
    FocusGenerator,
    GenerationSettings,
    InvalidInputError,
    Passage,
    Request,
    ScoreSplit,
    SpanMeter,
    attention_math,
    split_softmax,
)
from focus_rag.answer_report import trace_answer
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

QUESTION = "When was the mill built?"
SCORES = (0.7, 0.9, 0.5, 0.2)
PASSAGES = [Passage(f"Passage number {i} about the mill.", score=score, title="Mill") for i, score in enumerate(SCORES)]
SETTINGS = GenerationSettings(max_new_tokens=10)


@pytest.fixture(scope="module")
def parts():
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024)
    return model, tokenizer, tiny_profile(model)


def scored(*scores: float | None) -> list[Passage]:
    return [Passage(f"text {i}", score=score) for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "shown", "options", "best"),
    [
        (SCORES, range(4), {}, (1, 0)),
        (SCORES, (0, 2, 3), {}, (0, 2)),
        (SCORES, range(4), {"higher_is_better": False}, (3, 2)),
        (SCORES, range(4), {"score_kind": "l2"}, (3, 2)),
        ((0.1, 0.2, 0.4), range(3), {}, (0, 1)),  # rising as retrieved: distances
        ((None, 0.2, 0.4, None), range(4), {"higher_is_better": True}, (2, 1)),
        ((None, None, 0.4), range(3), {}, ()),  # one score cannot be compared
        ((0.3, 0.3, 0.3), range(3), {}, ()),
        ((None, None, None), range(3), {}, ()),
        ((0.3, 0.1), range(2), {}, ()),  # nothing else is shown
        ((), (), {}, ()),
    ],
)
def test_the_best_scored_passages_that_are_shown(scores, shown, options, best):
    assert ScoreSplit(passages=2).favoured(scored(*scores), list(shown), **options) == best


@pytest.mark.parametrize("wrong", [{"passages": 0}, {"tau": 0.0}, {"tau": 1.5}, {"top": 1}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError):
        ScoreSplit(**wrong)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_generator_answers_as_under_split_softmax_on_those_passages(parts, count, alpha):
    model, _, profile = parts
    bare = FocusGenerator(*parts, settings=SETTINGS, alpha=alpha)
    split = FocusGenerator(*parts, settings=SETTINGS, alpha=alpha, split=ScoreSplit(passages=count, tau=0.05))
    prompt = bare.prompts.from_question(QUESTION, PASSAGES, max_tokens=900, drop_order=())
    spans = [prompt.spans[index] for index in (1, 0)[:count]]
    heads = [(one.layer, one.head) for one in profile.heads]
    with split_softmax(model, heads, [spans], len(prompt.input_ids), tau=0.05, first_row=prompt.after_passages_in(len(prompt.input_ids))):
        expected = bare.answer(QUESTION, PASSAGES)
    answer = split.answer(QUESTION, PASSAGES)
    assert answer.text == expected.text != bare.answer(QUESTION, PASSAGES).text
    assert answer.alpha == alpha
    assert answer.reason.endswith("split softmax on the best scored passage" if count == 1 else "split softmax on the 2 best scored passages")
    assert "".join(split.stream(QUESTION, PASSAGES)) == answer.text
    assert asyncio.run(split.aanswer(QUESTION, PASSAGES)).text == answer.text


def test_rows_of_a_batch_are_split_each_by_its_own_scores(parts):
    split = FocusGenerator(*parts, settings=SETTINGS, split=ScoreSplit(tau=0.05))
    requests = [
        Request(question=QUESTION, passages=PASSAGES),
        Request(question="Why?", passages=PASSAGES[::-1][:3]),
        Request(question=QUESTION, passages=[Passage(one.text, title="Mill") for one in PASSAGES]),
        Request(prompt="Hello"),
    ]
    assert [one.text for one in split.answer_batch(requests)] == [split.run(one).text for one in requests]
    assert not split._lock.locked()


def test_without_scores_nothing_is_split(parts):
    unscored = [Passage(one.text, title="Mill") for one in PASSAGES]
    plain = FocusGenerator(*parts, settings=SETTINGS).answer(QUESTION, unscored)
    assert FocusGenerator(*parts, settings=SETTINGS, split=ScoreSplit(tau=0.01)).answer(QUESTION, unscored) == plain


def test_tau_one_changes_nothing(parts):
    plain = FocusGenerator(*parts, settings=SETTINGS).answer(QUESTION, PASSAGES)
    answer = FocusGenerator(*parts, settings=SETTINGS, split=ScoreSplit(tau=1.0)).answer(QUESTION, PASSAGES)
    assert answer.text == plain.text
    assert [use.attention for use in answer.passages] == pytest.approx([use.attention for use in plain.passages])


def test_a_split_without_a_profile_is_refused(parts):
    with pytest.raises(InvalidInputError, match="needs a profile"):
        FocusGenerator(*parts[:2], split=ScoreSplit())


def test_attention_on_passages_is_that_under_the_split(parts):
    """Against weights written out: the first answer token is chosen by the prompt's last row, where the split acts."""
    model, _, profile = parts
    split = FocusGenerator(*parts, settings=GenerationSettings(max_new_tokens=1), alpha=0.0, split=ScoreSplit(tau=0.2))
    answer = split.answer(QUESTION, PASSAGES)
    prompt = split.prompts.from_question(QUESTION, PASSAGES, max_tokens=900, drop_order=())
    ids = torch.tensor([prompt.input_ids])
    heads = [(one.layer, one.head) for one in profile.heads]
    with torch.inference_mode(), split_softmax(model, heads, [[prompt.spans[1]]], ids.shape[1], tau=0.2, first_row=prompt.after_passages_in(ids.shape[1])), SpanMeter(
        model, heads, [[(place, place + 1) for place in range(ids.shape[1])]], ids.shape[1]
    ) as meter:
        model(ids)
    (weights,) = meter.steps
    in_span = torch.zeros(ids.shape[1], dtype=torch.bool)
    in_span[slice(*prompt.spans[1])] = True
    after = attention_math.split_softmax(weights[0, :, 0], in_span, 0.2).mean(0)
    mass = torch.stack([after[slice(*span)].sum() for span in prompt.spans])
    assert [use.attention for use in answer.passages] == pytest.approx((mass / mass.sum()).tolist(), abs=1e-5)
    bare = FocusGenerator(*parts, settings=GenerationSettings(max_new_tokens=1), alpha=0.0).answer(QUESTION, PASSAGES)
    assert answer.passages[1].attention > bare.passages[1].attention + 0.05


def test_a_traced_answer_has_the_attention_under_the_split(parts):
    split = FocusGenerator(*parts, settings=SETTINGS, split=ScoreSplit(passages=2, tau=0.2))
    trace = trace_answer(split, QUESTION, PASSAGES)
    assert [use.favoured for use in trace.answer.passages] == [True, True, False, False]
    assert trace.tokens
    one = FocusGenerator(*parts, settings=GenerationSettings(max_new_tokens=1), split=ScoreSplit(passages=2, tau=0.2))
    once = one.answer(QUESTION, PASSAGES)
    assert trace.shares[0] == pytest.approx([use.attention for use in once.passages], abs=1e-4)


def test_masses_on_spans_are_split_as_the_weights_in_them():
    """Two of four spans of two keys each are favoured, the last keys are in no span."""
    weights = torch.randn(3, 4, 10, dtype=torch.float64).softmax(-1)
    is_favoured = torch.tensor([True, False, False, True])
    in_span = torch.cat([is_favoured.repeat_interleave(2), torch.tensor([False, False])])
    split = attention_math.split_softmax(weights, in_span, 0.1)[..., :8].unflatten(-1, (4, 2)).sum(-1)
    masses = weights[..., :8].unflatten(-1, (4, 2)).sum(-1)
    assert torch.allclose(attention_math.split_softmax(masses, is_favoured, 0.1), split)
    nothing = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert torch.equal(attention_math.split_softmax(nothing, torch.tensor([True, False]), 0.1), nothing)
