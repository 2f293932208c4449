"""Which passages are the best of a retrieval, and that a generator keeps these and drops the others first."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_rag import FocusGenerator, GenerationSettings, InvalidInputError, Passage, Request, ScoreSplit, best_passages
from focus_rag.answer_trace import trace_answer
from focus_rag.passage_ranking import by_relevance, rank_passages
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer

QUESTION = "When was the Ashford mill built?"
TEXTS = (
    "A wheel turned in the river.",
    "The Ashford mill was built in 1803.",
    "The bakery was opened in 1841.",
    "Ashford lies on a river.",
    "Bread is made of flour.",
)
FALLING = (0.9, 0.8, 0.7, 0.6, 0.5)
NO_ORDER = (0.5, 0.9, 0.4, 0.8, 0.1)
SETTINGS = GenerationSettings(max_new_tokens=8)


def passages(*scores: float | None, texts: tuple[str, ...] = TEXTS) -> list[Passage]:
    return [Passage(text, score=score) for text, score in zip(texts, scores, strict=True)]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, Any]:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024)
    return model, tokenizer, tiny_profile(model)


@pytest.mark.parametrize(
    ("scores", "question", "options", "kept"),
    [
        (FALLING, QUESTION, {}, [0, 1]),
        (FALLING[::-1], QUESTION, {}, [0, 1]),  # distances, by their order
        (FALLING[::-1], QUESTION, {"higher_is_better": True}, [1, 3]),
        (FALLING[::-1], QUESTION, {"score_kind": "cosine"}, [1, 3]),
        ((None,) * 5, QUESTION, {}, [1, 3]),  # words alone
        (NO_ORDER, QUESTION, {}, [1, 3]),
        ((0.7,) * 5, QUESTION, {}, [1, 3]),
        (FALLING, None, {}, [0, 1]),  # scores alone
        ((0.5, 0.6, 0.7, 0.8, 0.9), None, {"score_kind": "cosine"}, [3, 4]),
        ((None,) * 5, None, {}, [0, 1]),  # nothing tells: as they were retrieved
        ((None,) * 5, "Who?", {}, [0, 1]),
        (NO_ORDER, "Who?", {}, [1, 3]),  # and where scores may tell, the higher ones, which most are
    ],
)
def test_the_best_are_kept_in_the_order_of_retrieval(scores, question, options, kept):
    assert best_passages(passages(*scores), question, 2, **options) == kept


def test_all_are_kept_where_there_are_no_more():
    assert (
        best_passages(passages(*FALLING), QUESTION, 5)
        == best_passages(passages(*FALLING), QUESTION, 99)
        == list(range(5))
    )
    assert best_passages([], QUESTION, 3) == []


@pytest.mark.parametrize("scores", [FALLING, (None,) * 5, NO_ORDER])
def test_a_passage_without_text_takes_nobodys_place(scores):
    given = [Passage(" ", score=scores[0]), *passages(*scores)[1:]]
    for question in (QUESTION, None):
        assert 0 not in best_passages(given, question, 4) and best_passages(given, question, 5) == list(range(5))


@pytest.mark.parametrize("scores", [FALLING, (None,) * 5])
def test_a_text_that_was_retrieved_twice_takes_one_place(scores):
    given = passages(*scores, texts=(TEXTS[1], TEXTS[1], TEXTS[1], TEXTS[3], TEXTS[4]))
    assert best_passages(given, QUESTION, 3) == [0, 3, 4]
    assert best_passages(given, QUESTION, 4) == [0, 1, 3, 4]
    assert best_passages(given, QUESTION, 5) == list(range(5))


def test_what_to_go_by_can_be_said():
    given = passages(0.1, 0.2, 0.3, 0.9, 0.8)
    assert best_passages(given, QUESTION, 2, by="scores", score_kind="cosine") == [3, 4]
    assert best_passages(given, QUESTION, 2, by="words", score_kind="cosine") == [1, 3]


def test_numbers_and_truth_of_numpy_are_taken_as_they_are(parts):
    np = pytest.importorskip("numpy")
    given = passages(*FALLING)
    assert best_passages(given, "Who?", np.int64(2), higher_is_better=np.False_) == [3, 4]
    assert FocusGenerator(*parts, settings=SETTINGS).answer(QUESTION, given, keep_best=np.int64(1)).passages[1].used


@pytest.mark.parametrize("question", [7, {"question": "When?"}])
def test_what_was_asked_is_a_text(question):
    with pytest.raises(InvalidInputError, match="must be a string or None"):
        best_passages(passages(*FALLING), question, 2)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "3"])
def test_how_many_to_keep_is_a_whole_number_above_zero(parts, wrong):
    for call in (
        lambda: best_passages(passages(*FALLING), QUESTION, wrong),
        lambda: Request(question=QUESTION, keep_best=wrong),
        lambda: FocusGenerator(*parts, keep_best=wrong),
    ):
        with pytest.raises(InvalidInputError, match="passages to keep must be a whole number of at least 1"):
            call()


def test_an_unknown_kind_of_score_is_refused():
    with pytest.raises(InvalidInputError, match="Unknown score_kind"):
        best_passages(passages(*FALLING), QUESTION, 2, score_kind="stars")  # type: ignore[arg-type]


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), max_size=12), st.booleans())
def test_every_passage_has_its_place_and_those_without_a_score_come_last(scores, rises):
    found = [Passage("text", score=score) for score in scores]
    assert sorted(by_relevance(found, "text", higher_is_better=rises)) == list(range(len(found)))
    ranking = rank_passages(found, None, higher_is_better=rises)
    if ranking is not None:
        assert ranking.by == "scores" and min(ranking.behind) == 0.0
        assert all((score is None) == math.isinf(behind) for score, behind in zip(scores, ranking.behind, strict=True))


@pytest.mark.parametrize("setting", ["request", "generator"])
@pytest.mark.parametrize("alpha", [0.5, "auto"])
def test_a_generator_answers_as_if_only_the_kept_ones_had_been_retrieved(parts, setting, alpha):
    model, tokenizer, profile = parts
    profile = profile.replace(split=ScoreSplit(reach=0.0, tau=0.05))
    given, kept = passages(*FALLING), [0, 1, 3]
    plain = FocusGenerator(model, tokenizer, profile, settings=SETTINGS, alpha=alpha)
    expected = plain.answer(QUESTION, [given[place] for place in kept])
    if setting == "request":
        answer = plain.answer(QUESTION, given, keep_best=3)
    else:
        keeping = FocusGenerator(model, tokenizer, profile, settings=SETTINGS, alpha=alpha, keep_best=3)
        answer = keeping.answer(QUESTION, given)
        assert keeping.answer(QUESTION, given, keep_best=99) == plain.answer(QUESTION, given)
        assert "".join(keeping.stream(QUESTION, given)) == answer.text
    assert (answer.text, answer.alpha, answer.tau, answer.noise, answer.usage) == (
        expected.text, expected.alpha, expected.tau, expected.noise, expected.usage
    )  # fmt: skip
    assert [use.passage for use in answer.passages] == given
    assert [answer.passages[place] for place in kept] == list(expected.passages)
    for place in (2, 4):
        use = answer.passages[place]
        assert (use.used, use.attention, use.favoured) == (False, None, False) and "best" in use.dropped_reason
    assert len(trace_answer(plain, QUESTION, given, keep_best=3).answer.passages) == 5


def test_orientation_is_told_by_all_that_was_retrieved(parts):
    """Falling but for one step: of the three that are kept, nothing would tell which way up they are."""
    scores = [0.9, 0.6, 0.61, *(0.5 - i / 100 for i in range(12))]
    given = [Passage(f"text {i}", score=score) for i, score in enumerate(scores)]
    generator = FocusGenerator(*parts, settings=SETTINGS, split=ScoreSplit(reach=0.0, tau=0.05))
    answer = generator.answer("Who?", given, keep_best=3)
    assert [use.used for use in answer.passages] == [True] * 3 + [False] * 12
    assert [use.favoured for use in answer.passages] == [True] + [False] * 14
    assert not any(use.favoured for use in generator.answer("Who?", given[:3]).passages)


def test_scores_that_no_order_tells_apart_do_not_become_known_by_what_is_kept(parts):
    """Of a shuffled list the three that are kept rise by chance."""
    texts = ("The Ashford mill was built in 1803.", "Ashford mill.", "The Ashford mill.", "A river.", "Bread.", "Cats.")
    given = passages(0.2, 0.9, 0.4, 0.8, 0.1, 0.7, texts=texts)
    assert best_passages(given, QUESTION, 2) == [0, 1]  # 0.2 and 0.9
    generator = FocusGenerator(*parts, settings=SETTINGS, split=ScoreSplit(reach=0.0, tau=0.05))
    answer = generator.answer(QUESTION, given, keep_best=2)
    assert not any(use.favoured for use in answer.passages) and answer.noise == 0.5
    assert [use.passage for use in answer.passages] == given  # as they were given, scores and all


def test_prompts_that_the_caller_laid_out_stay_as_they_are(parts):
    given = passages(*FALLING)
    text = "\n\n".join([*TEXTS, QUESTION])
    plain, keeping = (FocusGenerator(*parts, settings=SETTINGS, keep_best=keep) for keep in (None, 1))
    for what in (text, [{"role": "user", "content": text}]):
        assert keeping.generate(what, passages=given) == plain.generate(what, passages=given)
        with pytest.raises(InvalidInputError, match="hold theirs already"):
            plain.generate(what, passages=given, keep_best=2)


def test_rows_of_a_batch_keep_each_their_own(parts):
    generator = FocusGenerator(*parts, settings=SETTINGS)
    requests = [Request(question=QUESTION, passages=passages(*FALLING), keep_best=keep) for keep in (None, 1, 3)]
    answers = generator.answer_batch(requests)
    assert [sum(use.used for use in answer.passages) for answer in answers] == [5, 1, 3]
    assert [answer.text for answer in answers] == [generator.run(request).text for request in requests]


def test_what_does_not_fit_the_window_is_dropped_from_the_worst_up(parts):
    """By scores and words: by the scores of a poor retriever alone, the passage that answers would go first."""
    model, tokenizer, profile = parts
    texts = (
        "The Ashford mill was built in 1803.",
        *(f"Nothing of the kind is said here, for the {i}th time. " * 4 for i in range(8)),
    )
    given = [Passage(text, score=score / 10) for text, score in zip(texts, (1, 9, 8, 7, 6, 5, 4, 3, 2), strict=True)]
    generator = FocusGenerator(model, tokenizer, profile, settings=SETTINGS)
    answer = generator.answer(QUESTION, given, score_kind="cosine")
    used = [use.used for use in answer.passages]
    assert used[0] and not all(used)
    order = by_relevance(given, QUESTION, score_kind="cosine")
    assert [used[place] for place in order] == sorted(used, reverse=True)
    assert all("window" in use.dropped_reason for use in answer.passages if not use.used)
