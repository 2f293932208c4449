"""What speaks for an answer, and how likely that makes it to be right."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import torch

from focus_rag import FocusGenerator, FocusProfile, GenerationSettings, Passage, Request, focus
from focus_rag.confidence import Confidence, Support
from focus_rag.decoding import RowText
from focus_rag.examples import Example
from focus_rag.fitting.confidence_fitting import Judged, fit_confidence, judged
from focus_rag.fitting.report import _confidence_in_words
from focus_rag.shared_words import word_share
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

QUESTION = "When was the mill built?"
PASSAGES = [
    Passage("The mill was built in 1841.", 0.9, title="Mill"),
    Passage("The bakery opened in 1902. It is new.", 0.4),
]
SURE = Confidence(intercept=1.0, weights=(0.5, 0.25, 2.0, 1.0))


@pytest.fixture(scope="module")
def parts():
    model = tiny_model(vocab_size=300, max_position_embeddings=1024, seed=3)
    return model, tiny_tokenizer(), tiny_profile(model).replace(confidence=SURE)


def written_out(parts, generator: FocusGenerator, answer, ids: list[int]) -> list[float]:
    """Log-probabilities of an answer's tokens by one pass over prompt and answer together."""
    model, _, profile = parts
    prompt = generator.prompts.from_question(QUESTION, PASSAGES, max_tokens=900, drop_order=())
    with torch.inference_mode(), focus(model, profile, answer.alpha, passages_at=prompt.passages_at):
        logits = model(torch.tensor([[*prompt.input_ids, *ids]])).logits[0, len(prompt.input_ids) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "seed": 4}, {"temperature": 0.8, "top_k": 3, "seed": 5}])
def test_the_log_probabilities_are_the_models_own_whatever_a_token_was_sampled_by(parts, options, monkeypatch):
    generator = FocusGenerator(*parts, alpha=0.5, settings=GenerationSettings(max_new_tokens=8))
    taken: list[int] = []  # the tokens themselves are no part of an answer
    push = RowText.push
    monkeypatch.setattr(
        RowText, "push", lambda self, token, logprob: (taken.append(token), push(self, token, logprob))[1]
    )
    answer = generator.answer(QUESTION, PASSAGES, **options)
    expected = written_out(parts, generator, answer, taken)
    assert answer.support.logprob == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert answer.support.least_logprob == pytest.approx(min(expected), abs=1e-4)
    assert answer.confidence == SURE.of(answer.support) and 0 < answer.confidence < 1


def test_the_end_of_a_sequence_is_no_part_of_what_was_said(parts):
    _, tokenizer, _ = parts
    model = tiny_model(vocab_size=300, max_position_embeddings=1024, seed=3)
    generator = FocusGenerator(model, tokenizer, settings=GenerationSettings(max_new_tokens=4))
    whole = generator.answer(QUESTION, PASSAGES)
    prompt = generator.prompts.from_question(QUESTION, PASSAGES, max_tokens=900, drop_order=())
    taken = model.generate(torch.tensor([prompt.input_ids]), max_new_tokens=4, do_sample=False)[0, -4:].tolist()
    assert whole.finish_reason == "length" and taken[0] != taken[-1]
    model.generation_config.eos_token_id = taken[-1]
    first = taken.index(taken[-1])
    ended = generator.answer(QUESTION, PASSAGES)
    assert ended.finish_reason == "stop" and ended.usage.completion_tokens == first + 1
    assert ended.support.logprob == pytest.approx(
        generator.answer(QUESTION, PASSAGES, max_new_tokens=first).support.logprob, abs=1e-5
    )
    model.generation_config.eos_token_id = taken[0]
    silent = generator.answer(QUESTION, PASSAGES)
    assert silent.text == "" and silent.support is None and silent.confidence is None and silent.evidence == ()


def test_rows_of_a_batch_have_each_their_own(parts):
    generator = FocusGenerator(*parts, alpha=0.5, settings=GenerationSettings(max_new_tokens=6))
    requests = [
        Request(question=QUESTION, passages=PASSAGES),
        Request(
            question="What is new?",
            passages=PASSAGES[1:],
            settings=GenerationSettings(max_new_tokens=3, temperature=1.0, seed=1),
        ),
        Request(question="What is new?"),
        Request(prompt=f"{PASSAGES[0].text} When?", passages=PASSAGES),
        Request(prompt=f"{PASSAGES[0].text} When?", passages=PASSAGES, query=QUESTION),
    ]
    together = generator.answer_batch(requests)
    for one, request in zip(together, requests, strict=True):
        alone = generator.run(request)
        assert one.support.logprob == pytest.approx(alone.support.logprob, abs=1e-4)
        assert one.support.least_logprob == pytest.approx(alone.support.least_logprob, abs=1e-4)
        assert (
            one.support.answer_words == alone.support.answer_words
            and one.support.question_words == alone.support.question_words
        )
    assert (together[2].support.answer_words, together[2].support.question_words) == (0.0, 0.0)
    assert together[3].support.question_words is None and together[3].confidence is None  # nobody said what was asked
    assert together[4].support.question_words is not None and together[4].confidence is not None


def test_a_schema_that_needs_what_the_model_would_never_say_is_still_a_number():
    pytest.importorskip("llguidance")
    model = tiny_model(vocab_size=300, max_position_embeddings=1024, seed=3)
    tokenizer = tiny_tokenizer()
    model.generation_config.suppress_tokens = tokenizer.encode('"', add_special_tokens=False)
    answer = FocusGenerator(model, tokenizer).answer(QUESTION, PASSAGES, json_schema={"enum": ["1841", "1902"]})
    assert answer.support.least_logprob == -100.0 and math.isfinite(answer.support.logprob)
    assert answer.support.answer_words == 1.0 and answer.evidence[0].passage == (0 if "1841" in answer.text else 1)


def test_a_model_that_computes_no_numbers_still_gets_numbers(parts):
    model = tiny_model(vocab_size=300, max_position_embeddings=1024, seed=3)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    answer = FocusGenerator(model, tiny_tokenizer(), parts[2]).answer(QUESTION, PASSAGES, max_new_tokens=3)
    json.dumps(answer.to_dict(), allow_nan=False)
    assert answer.support is None or answer.support.logprob == -100.0


def test_without_a_fit_there_is_support_and_no_confidence(parts):
    model, tokenizer, profile = parts
    for known in (None, profile.replace(confidence=None)):
        answer = FocusGenerator(model, tokenizer, known).answer(QUESTION, PASSAGES, max_new_tokens=4)
        assert answer.support is not None and answer.confidence is None
    report = FocusGenerator(*parts).answer(QUESTION, PASSAGES, max_new_tokens=4).report()
    assert 0 < report["confidence"] < 1 and set(report["support"]) == {
        "logprob",
        "least_logprob",
        "answer_words",
        "question_words",
    }


@pytest.mark.parametrize(
    ("text", "share"),
    [("The mill was built in 1841", 1.0), ("In 1902", 0.0), ("The old mill, 1841", 2 / 3), ("the", 0.0), ("", 0.0)],
)
def test_words_that_stand_in_a_passage(text, share):
    assert word_share(text, Passage("It was built in 1841.", title="Mill")) == pytest.approx(share)
    assert word_share(text, None) == 0.0


def test_confidence_is_a_probability_whatever_speaks_for_an_answer():
    assert SURE.of(Support(0.0, 0.0, 0.0, 0.0)) == pytest.approx(1 / (1 + math.exp(-1)))
    assert SURE.of(Support(-1e9, -1e9, 0.0, 0.0)) < 1e-9 and SURE.of(Support(1e9, 0.0, 1.0, 1.0)) > 1 - 1e-9
    assert SURE.of(Support(-0.1, -0.5, 1.0, None)) is None
    assert SURE.named == {
        "intercept": 1.0,
        "logprob": 0.5,
        "least_logprob": 0.25,
        "answer_words": 2.0,
        "question_words": 1.0,
    }


def test_a_profile_keeps_it(parts, tmp_path):
    profile = parts[2].replace(report={"b": 1, "a": 2})
    assert FocusProfile.load(profile.save(tmp_path / "q")).digest == profile.digest != parts[2].digest
    assert FocusProfile.load(profile.save(tmp_path / "p")).confidence == SURE
    assert profile.top(1).confidence == SURE


def drawn(count: int = 200, *, seed: int = 0, told: float = 3.0) -> list[Judged]:
    """Answers of which words tell right from wrong, and log-probabilities nothing."""
    rng, found = random.Random(seed), []
    for index in range(count):
        gold_missing = index % 2 == 1
        words = rng.random()
        is_right = not gold_missing and rng.random() < 1 / (1 + math.exp(-told * (2 * words - 1)))
        found.append(
            Judged(
                f"q{index // 2}", Support(-rng.random(), -5 * rng.random(), words, rng.random()), is_right, gold_missing
            )
        )
    return found


def test_what_tells_right_answers_is_found_and_what_tells_nothing_counts_for_little():
    confidence, figures = fit_confidence(drawn(2000), 0.5, 0)
    scale = {"logprob": 1.0, "least_logprob": 5.0, "answer_words": 1.0, "question_words": 1.0}
    effect = {name: abs(weight) * scale[name] for name, weight in confidence.named.items() if name in scale}
    assert max(effect, key=effect.get) == "answer_words" and effect["answer_words"] > 4 * sorted(effect.values())[-2]
    assert (
        figures["auroc"]["low"] < figures["auroc"]["mean"] < figures["auroc"]["high"] < 0.9
        and figures["auroc"]["low"] > 0.6
    )
    blind, nothing = fit_confidence(drawn(2000, told=0.0), 0.5, 0)
    assert nothing["auroc"]["low"] < 0.5 < nothing["auroc"]["high"] and blind is not None
    assert fit_confidence(drawn(2000), 0.5, 0) == (confidence, figures)


def test_probabilities_are_those_of_the_share_of_missing_gold_passages():
    found = drawn(3000)
    right = [one.is_right for one in found if not one.gold_missing]
    for share in (0.1, 0.5):
        confidence, _ = fit_confidence(found, share, 0)
        present = [confidence.of(one.support) for one in found if not one.gold_missing]
        missing = [confidence.of(one.support) for one in found if one.gold_missing]
        told = (1 - share) * sum(present) / len(present) + share * sum(missing) / len(missing)
        assert told == pytest.approx((1 - share) * sum(right) / len(right), abs=0.01)


def test_too_few_right_or_wrong_answers_fit_nothing():
    found = drawn(200)
    assert fit_confidence([one for one in found if not one.is_right], 0.3, 0)[0] is None
    few = [one for one in found if one.is_right][:19] + [one for one in found if not one.is_right]
    assert fit_confidence(few, 0.3, 0) == (None, {"answers": len(few), "right": 19, "missing_share": 0.3})
    for one in (True, False):  # of four questions, however often they were asked
        few = [replace(each, key=f"q{place % 4}") if each.is_right == one else each for place, each in enumerate(found)]
        assert fit_confidence(few, 0.3, 0)[0] is None
    assert fit_confidence([replace(each, key="q") for each in found], 0.3, 0)[0] is None


def test_answers_of_which_none_lacked_its_gold_passage_are_not_weighed_as_if_some_had(tmp_path):
    found = [one for one in drawn(400) if not one.gold_missing]
    confidence, figures = fit_confidence(found, 0.3, 0)
    assert confidence is not None and figures["missing_share"] == 0.0 and figures["found"]["missing"] is None
    json.dumps(figures, allow_nan=False)
    assert "without its gold passage no answer was given" in _confidence_in_words(figures)
    told = _confidence_in_words(fit_confidence(drawn(400), 0.3, 0)[1])
    assert "of those whose gold passage was missing" in told and "for 30% of all questions" in told


def test_an_answer_of_nothing_is_supported_by_nothing(parts):
    answer = FocusGenerator(*parts, alpha=0.5).answer(QUESTION, PASSAGES, max_new_tokens=6)
    begun = FocusGenerator(*parts, alpha=0.5).answer(QUESTION, PASSAGES, max_new_tokens=6, stop=[answer.text[0]])
    assert begun.text == "" and begun.support is None and begun.confidence is None and begun.evidence == ()


def test_answers_that_say_nothing_is_stated_are_no_answers(parts):
    answer = FocusGenerator(*parts).answer(QUESTION, PASSAGES, max_new_tokens=3)
    answers = [replace(answer, text=text) for text in ("1841", "1902", "The passages do not contain it.")]
    answers.append(replace(answer, text="1841", support=None))
    questions = [Example(QUESTION, ("1841",), tuple(PASSAGES), frozenset({0}))] * 4
    found = judged(answers, questions, "exact", gold_missing=False)
    assert (
        [one.is_right for one in found] == [True, False]
        and found[0].support == answer.support
        and found[0].key == questions[0].key
    )
    missing = judged(
        answers, questions, "exact", gold_missing=True
    )  # right by chance is not right by what it was given
    assert [(one.is_right, one.gold_missing) for one in missing] == [(False, True)] * 2
