"""Split softmax on the best scored passages: which ones these are, and that a generator with it answers as the oracle
form would.
"""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from focus_rag import (
    FixedAlpha,
    FocusGenerator,
    GenerationSettings,
    InvalidInputError,
    Passage,
    Request,
    ScoreSplit,
    SpanMeter,
    split_softmax,
)
from focus_rag.answer_trace import trace_answer
from focus_rag.attention import formulas
from focus_rag.score_split import Favoured
from focus_rag.shared_words import shared_word_scores
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

QUESTION = "When was the mill built?"
SCORES = (0.9, 0.7, 0.5, 0.2)
PASSAGES = [Passage(f"Passage number {i} about the mill.", score=score, title="Mill") for i, score in enumerate(SCORES)]
UNSCORED = [Passage(one.text, title="Mill") for one in PASSAGES]
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
        (SCORES, range(4), {}, (0, 1)),  # 0.7 lies 29% of the range below 0.9
        (SCORES, (1, 2, 3), {}, (1,)),  # the range is that of the retrieval, not of what is shown
        (SCORES, (0, 1), {}, ()),  # nothing else is shown
        (SCORES, range(4), {"higher_is_better": False}, (3,)),
        (SCORES, range(4), {"score_kind": "l2"}, (3,)),
        ((0.1, 0.2, 0.4, 0.8), range(4), {}, (0, 1)),  # rising as retrieved: distances
        ((0.5, 0.9, 0.4, 0.8), range(4), {}, ()),  # which end is the better one is anybody's guess
        ((0.5, 0.9, 0.4, 0.8), range(4), {"score_kind": "cosine"}, (1, 3)),
        ((None, 0.2, 0.39, 0.4, None), range(5), {"higher_is_better": True}, (3, 2)),
        ((None, None, 0.4), range(3), {}, ()),  # one score cannot be compared
        ((0.3, 0.3, 0.3), range(3), {}, ()),
        ((None, None, None), range(3), {}, ()),
        ((0.3, 0.1), range(2), {}, (0,)),
        ((1.7e308, -1.7e308, 0.0), range(3), {"higher_is_better": True}, (0,)),
        ((5e-324, 0.0), range(2), {}, ()),  # too close for halves
        ((0.7, 0.7, 0.7, 0.7 + 2e-16), range(4), {}, ()),  # rounding
        ((0.7, 0.7, 0.7, 0.7 + 2e-16), range(4), {"higher_is_better": True}, ()),
        ((), (), {}, ()),
    ],
)
def test_the_best_scored_passages_that_are_shown(scores, shown, options, best):
    assert ScoreSplit(reach=0.3).favoured(scored(*scores), list(shown), **options).passages == best


@pytest.mark.parametrize(("fewest", "shown", "best"), [(2, 2, (0,)), (3, 2, ()), (4, 4, (0, 1)), (5, 4, ())])
def test_among_too_few_passages_none_is_favoured(fewest, shown, best):
    assert (
        ScoreSplit(reach=0.3 if shown > 2 else 0.0, fewest=fewest).favoured(scored(*SCORES), range(shown)).passages
        == best
    )


MILLS = (
    "A mill stood there.",
    "The Ashford mill was built in 1803.",
    "The bakery was built in 1841.",
    "Ashford lies on a river.",
)


@pytest.mark.parametrize(
    ("scores", "options", "best"),
    [
        ((None,) * 4, {}, (1,)),
        ((0.5,) * 4, {}, (1,)),
        ((None, 0.5, None, None), {}, (1,)),  # one score cannot be compared
        ((0.5, 0.9, 0.4, 0.8), {}, (1,)),  # which end is the better one is anybody's guess
        ((0.5, 0.9, 0.4, 0.8), {"score_kind": "cosine"}, ()),  # the scores say it
        ((0.9, 0.8, 0.5, 0.4), {}, ()),
    ],
)
def test_words_are_asked_where_scores_tell_nothing(scores, options, best):
    passages = [Passage(text, score=score) for text, score in zip(MILLS, scores, strict=True)]
    split, question = ScoreSplit(reach=0.3, without_scores=True), "When was the Ashford mill built?"
    by_scores = ScoreSplit(reach=0.3).favoured(passages, range(4), question, **options)
    assert split.favoured(passages, range(4), question, **options) == (Favoured(best, "words") if best else by_scores)
    for nothing in (None, "", "Who?"):
        assert split.favoured(passages, range(4), nothing, **options).passages == by_scores.passages
    assert split.model_copy(update={"fewest": 5}).favoured(passages, range(4), question, **options) == Favoured()
    assert split.favoured(passages, (1,), question, **options).passages == ()  # nothing else is shown


@pytest.mark.parametrize(
    ("scores", "options", "best"),
    [
        ((0.9, 0.5, 0.7, 0.1), {"score_kind": "cosine"}, Favoured((1,), "both")),
        ((0.9, 0.8, 0.5, 0.4), {}, Favoured((1,), "both")),
        ((0.9, None, 0.5, 0.4), {}, Favoured((1, 0), "both")),  # without a score it counts as the worst scored one
        ((0.4, 0.5, 0.8, 0.9), {"higher_is_better": False}, Favoured((1,), "both")),
        ((None,) * 4, {}, Favoured()),
        ((0.5, 0.9, 0.4, 0.8), {}, Favoured()),
    ],
)
def test_words_count_beside_scores(scores, options, best):
    passages = [Passage(text, score=score) for text, score in zip(MILLS, scores, strict=True)]
    split, question = ScoreSplit(reach=0.3, by="both"), "When was the Ashford mill built?"
    assert split.favoured(passages, range(4), question, **options) == best
    also_alone = split.model_copy(update={"without_scores": True}).favoured(passages, range(4), question, **options)
    assert also_alone == (best if best.passages else Favoured((1,), "words"))
    by_scores = ScoreSplit(reach=0.3).favoured(passages, range(4), **options)
    for nothing in (None, "", "Who?"):
        assert split.favoured(passages, range(4), nothing, **options).passages == by_scores.passages
    alone = ScoreSplit(reach=0.3, by="words")
    assert alone.favoured(passages, range(4), question, **options) == Favoured((1,), "words")
    assert alone.favoured(passages, range(4), None, **options).passages == ()


ONE = "The Ashford mill was built in 1841."
OTHER = "The barn was built."


@pytest.mark.parametrize(
    ("texts", "scores", "best"),
    [
        (
            (OTHER, ONE, OTHER, OTHER, "A barn."),
            (0.90, 0.63, 0.88, 0.87, 0.60),
            1,
        ),  # one stands out by words, by scores few lag behind
        (
            ("A stable.", "The Ashford mill was built.", ONE, f"{ONE[:-1]} or later.", "A barn."),
            (0.90, 0.66, 0.61, 0.61, 0.60),
            0,
        ),  # and the other way round
    ],
)
def test_what_makes_one_passage_stand_out_says_more_than_what_spreads_them(texts, scores, best):
    passages = [Passage(text, score=score) for text, score in zip(texts, scores, strict=True)]
    question, options = "When was the Ashford mill built?", {"score_kind": "cosine"}
    assert ScoreSplit(reach=0.0, by="both").favoured(passages, range(5), question, **options).passages == (best,)
    by_words = shared_word_scores(question, passages)
    farthest = max(by_words) - min(by_words)
    behind = [
        (max(by_words) - word) / farthest + (0.9 - score) / 0.3 for word, score in zip(by_words, scores, strict=True)
    ]
    assert behind[best] > behind[1 - best]  # one as much as the other, it would be the other one


def test_a_passage_that_is_best_by_both_is_the_best_and_the_order_of_the_others_is_that_of_the_sum():
    passages = [
        Passage(text, score=score)
        for text, score in zip(("mill mill mill", "mill and barn", "a barn"), (1.0, 0.9, 0.0), strict=True)
    ]
    assert ScoreSplit(reach=0.9, by="both").favoured(passages, range(3), "mill").passages == (0, 1)
    assert ScoreSplit(reach=0.0, by="both").favoured(passages, range(3), "mill").passages == (0,)


@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=12),
    st.floats(0, 0.99),
    st.integers(1, 1000),
    st.integers(-1000, 1000),
)
def test_scale_and_shift_of_scores_do_not_matter(scores, reach, scale, shift):
    split, places = ScoreSplit(reach=reach), range(len(scores))
    gaps = {(max(scores) - one) / (max(scores) - min(scores)) for one in scores if max(scores) > min(scores)}
    if any(math.isclose(gap, reach) for gap in gaps):  # rounding decides there
        return
    found = split.favoured(scored(*map(float, scores)), places, higher_is_better=True).passages
    assert (
        found
        == split.favoured(
            scored(*(float(scale * one + shift) for one in scores)), places, higher_is_better=True
        ).passages
    )
    assert found == split.favoured(scored(*(-float(one) for one in scores)), places, higher_is_better=False).passages
    if len(set(scores)) > 1:
        assert {i for i, one in enumerate(scores) if one == max(scores)} <= set(found) < set(places)


@pytest.mark.parametrize(
    "wrong", [{"reach": -0.1}, {"reach": 1.0}, {"tau": 0.0}, {"tau": 1e-60}, {"tau": 1.5}, {"fewest": 1}, {"top": 1}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError):
        ScoreSplit(**wrong)


def test_a_prompt_that_ends_with_its_passages_is_leaned_on_from_the_first_token(parts):
    prompt = f"{QUESTION}\n" + "\n".join(passage.content for passage in PASSAGES)
    split = FocusGenerator(*parts, settings=SETTINGS, split=ScoreSplit(reach=0.0, tau=0.01), alpha=0.0)
    asked = {"passages": PASSAGES, "query": QUESTION, "max_new_tokens": 1}
    leaned, bare = (split.generate(prompt, **asked, **own) for own in ({}, {"split": "off"}))
    assert leaned.tau == 0.01
    assert leaned.support.logprob != bare.support.logprob


@pytest.mark.parametrize("reach", [0.0, 0.3])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_generator_answers_as_under_split_softmax_on_those_passages(parts, reach, alpha):
    model, _, profile = parts
    bare = FocusGenerator(*parts, settings=SETTINGS, alpha=alpha)
    split = FocusGenerator(*parts, settings=SETTINGS, alpha=alpha, split=ScoreSplit(reach=reach, tau=0.05))
    prompt = bare.prompts.from_question(QUESTION, PASSAGES, max_tokens=900, drop_order=())
    spans = [prompt.spans[index] for index in ((0,) if reach == 0 else (0, 1))]
    with split_softmax(
        model,
        profile.head_pairs,
        [spans],
        len(prompt.input_ids),
        tau=0.05,
        first_row=prompt.after_passages_in(len(prompt.input_ids)),
    ):
        expected = bare.answer(QUESTION, PASSAGES)
    answer = split.answer(QUESTION, PASSAGES)
    assert answer.text == expected.text != bare.answer(QUESTION, PASSAGES).text
    assert (answer.alpha, answer.tau) == (alpha, 0.05)
    assert answer.reason.endswith(
        f"split softmax on the {'' if reach == 0 else '2 '}best scored passage{'' if reach == 0 else 's'}, tau 0.05"
    )
    assert [use.favoured for use in answer.passages] == [True, reach > 0, False, False]
    assert "".join(split.stream(QUESTION, PASSAGES)) == answer.text
    assert asyncio.run(split.aanswer(QUESTION, PASSAGES)).text == answer.text


@pytest.mark.parametrize("wanted", ["question", "messages", "prompt"])
def test_a_generator_leans_by_words_on_what_it_knows_was_asked(parts, wanted):
    passages = [Passage(text) for text in MILLS]
    question, split = "When was the Ashford mill built?", ScoreSplit(reach=0.3, tau=0.05, without_scores=True)
    generator = FocusGenerator(parts[0], parts[1], parts[2].replace(split=split), settings=SETTINGS)
    if wanted == "question":
        answer = generator.answer(question, passages)
    else:
        text = "\n\n".join([*MILLS, question])
        what = text if wanted == "prompt" else [{"role": "user", "content": text}]
        assert not any(
            use.favoured for use in generator.generate(what, passages=passages).passages
        )  # nobody says what was asked
        answer = generator.generate(what, passages=passages, query=question)
        assert "".join(generator.stream_generate(what, passages=passages, query=question)) == answer.text
    assert [use.favoured for use in answer.passages] == [False, True, False, False]
    assert (answer.alpha, answer.tau) == (0.0, 0.05)
    assert answer.reason.startswith("split softmax on the passage that shares most words with the question, tau 0.05")
    assert [use.passage.score for use in answer.passages] == [None] * 4  # such scores are nobody's to report
    scored = [Passage(text, score=score) for text, score in zip(MILLS, SCORES, strict=True)]
    known = generator.answer(question, scored)
    assert "best scored" in known.reason
    both = generator.answer(question, scored, split=split.model_copy(update={"by": "both"}), alpha="auto")
    assert both.reason.startswith("split softmax on the passage best by score and shared words, tau 0.05")


def test_what_is_left_to_the_profile_is_split_or_steered_and_never_both(parts):
    model, tokenizer, profile = parts
    leaning = ScoreSplit(tau=0.05)
    plain, split = (
        FocusGenerator(model, tokenizer, profile, settings=SETTINGS),
        FocusGenerator(model, tokenizer, profile.replace(split=leaning), settings=SETTINGS),
    )
    by_scores = split.answer(QUESTION, PASSAGES)
    assert (by_scores.alpha, by_scores.tau) == (0.0, 0.05) and "instead of focus directions" in by_scores.reason
    assert by_scores.text == plain.answer(QUESTION, PASSAGES, alpha=0.0, split=leaning).text
    # Where scores tell nothing, and where something was said, what else there is.
    steered = plain.answer(QUESTION, UNSCORED)
    assert steered.alpha > 0 and split.answer(QUESTION, UNSCORED) == steered
    for options in ({"split": "off"}, {"alpha": 0.5}, {"alpha": 0.0}, {"alpha": FixedAlpha(alpha=0.3)}):
        assert split.answer(QUESTION, PASSAGES, **options) == plain.answer(QUESTION, PASSAGES, **options)
    off = FocusGenerator(model, tokenizer, profile.replace(split=leaning), settings=SETTINGS, split="off")
    assert off.answer(QUESTION, PASSAGES) == plain.answer(QUESTION, PASSAGES)
    assert off.answer(QUESTION, PASSAGES, split="auto") == by_scores
    both = plain.answer(QUESTION, PASSAGES, alpha=0.5, split=leaning)
    assert (both.alpha, both.tau) == (0.5, 0.05)


def test_rows_of_a_batch_are_split_each_by_its_own_scores_and_exponent(parts):
    split = FocusGenerator(*parts, settings=SETTINGS, split=ScoreSplit(tau=0.05))
    requests = [
        Request(question=QUESTION, passages=PASSAGES),
        Request(question="Why?", passages=PASSAGES[::-1][:3]),
        Request(question=QUESTION, passages=PASSAGES, split=ScoreSplit(tau=0.5)),
        Request(question=QUESTION, passages=UNSCORED),
        Request(question=QUESTION, passages=PASSAGES, split="off"),
        Request(prompt="Hello"),
    ]
    answers = split.answer_batch(requests)
    assert [one.text for one in answers] == [split.run(one).text for one in requests]
    assert [one.tau for one in answers] == [0.05, 0.05, 0.5, 1.0, 1.0, 1.0]
    assert not split._turns.is_taken


def test_without_scores_nothing_is_split(parts):
    plain = FocusGenerator(*parts, settings=SETTINGS).answer(QUESTION, UNSCORED)
    assert FocusGenerator(*parts, settings=SETTINGS, split=ScoreSplit(tau=0.01)).answer(QUESTION, UNSCORED) == plain


def test_tau_one_changes_nothing(parts):
    plain = FocusGenerator(*parts, settings=SETTINGS).answer(QUESTION, PASSAGES)
    assert FocusGenerator(*parts, settings=SETTINGS, split=ScoreSplit(tau=1.0)).answer(QUESTION, PASSAGES) == plain


def test_a_split_without_a_profile_is_refused(parts):
    with pytest.raises(InvalidInputError, match="needs a profile"):
        FocusGenerator(*parts[:2], split=ScoreSplit())
    bare = FocusGenerator(*parts[:2])
    with pytest.raises(InvalidInputError, match="needs a profile"):
        bare.answer(QUESTION, PASSAGES, split=ScoreSplit())
    with pytest.raises(InvalidInputError, match="'auto' or 'off'"):
        bare.answer(QUESTION, PASSAGES, split="on")
    assert bare.answer(QUESTION, PASSAGES, split="auto").tau == 1.0


def test_attention_on_passages_is_that_under_the_split(parts):
    """Against weights written out: the first answer token is chosen by the prompt's last row, where the split acts."""
    model, _, profile = parts
    split = FocusGenerator(
        *parts, settings=GenerationSettings(max_new_tokens=1), alpha=0.0, split=ScoreSplit(reach=0.0, tau=0.2)
    )
    answer = split.answer(QUESTION, PASSAGES)
    prompt = split.prompts.from_question(QUESTION, PASSAGES, max_tokens=900, drop_order=())
    ids = torch.tensor([prompt.input_ids])
    heads = profile.head_pairs
    with (
        torch.inference_mode(),
        split_softmax(
            model, heads, [[prompt.spans[0]]], ids.shape[1], tau=0.2, first_row=prompt.after_passages_in(ids.shape[1])
        ),
        SpanMeter(model, heads, [[(place, place + 1) for place in range(ids.shape[1])]], ids.shape[1]) as meter,
    ):
        model(ids)
    (weights,) = meter.steps
    in_span = torch.zeros(ids.shape[1], dtype=torch.bool)
    in_span[slice(*prompt.spans[0])] = True
    after = formulas.split_weights(weights[0, :, 0], in_span, 0.2).mean(0)
    mass = torch.stack([after[slice(*span)].sum() for span in prompt.spans])
    assert [use.attention for use in answer.passages] == pytest.approx((mass / mass.sum()).tolist(), abs=1e-5)
    bare = FocusGenerator(*parts, settings=GenerationSettings(max_new_tokens=1), alpha=0.0).answer(QUESTION, PASSAGES)
    assert answer.passages[0].attention > bare.passages[0].attention + 0.05


def test_a_traced_answer_has_the_attention_under_the_split(parts):
    split = FocusGenerator(*parts, settings=SETTINGS)
    options = {"alpha": 0.0, "split": ScoreSplit(tau=0.2)}
    trace = trace_answer(split, QUESTION, PASSAGES, **options)
    assert [use.favoured for use in trace.answer.passages] == [True, True, False, False]
    assert trace.tokens
    once = split.answer(QUESTION, PASSAGES, max_new_tokens=1, **options)
    assert trace.shares[0] == pytest.approx([use.attention for use in once.passages], abs=1e-4)


def test_masses_on_spans_are_split_as_the_weights_in_them():
    """Two of four spans of two keys each are favoured, the last keys are in no span."""
    weights = torch.randn(3, 4, 10, dtype=torch.float64).softmax(-1)
    is_favoured = torch.tensor([True, False, False, True])
    in_span = torch.cat([is_favoured.repeat_interleave(2), torch.tensor([False, False])])
    split = formulas.split_weights(weights, in_span, 0.1)[..., :8].unflatten(-1, (4, 2)).sum(-1)
    masses = weights[..., :8].unflatten(-1, (4, 2)).sum(-1)
    assert torch.allclose(formulas.split_weights(masses, is_favoured, 0.1), split)
    nothing = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert torch.equal(formulas.split_weights(nothing, torch.tensor([True, False]), 0.1), nothing)


@pytest.mark.parametrize("wrong", [0, "false", 1.0])
def test_an_orientation_is_true_or_false(wrong):
    with pytest.raises(InvalidInputError, match="higher_is_better must be True, False or None"):
        Request(question="?", higher_is_better=wrong)


def test_numbers_and_truth_of_numpy_and_torch_are_taken_as_they_are(parts):
    np = pytest.importorskip("numpy")
    for way in (np.bool_(False), torch.tensor(False)):
        assert Request(question="?", higher_is_better=way).higher_is_better is False
    generator = FocusGenerator(*parts, settings=SETTINGS)
    assert generator.answer(QUESTION, PASSAGES, alpha=np.float32(0.5)) == generator.answer(
        QUESTION, PASSAGES, alpha=0.5
    )
