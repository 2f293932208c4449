"""Noise from scores: bounds, invariances, and what missing or meaningless scores do."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from focus_rag.errors import InvalidInputError
from focus_rag.noise import estimate_noise, signal_of
from focus_rag.passages import Passage

garbage = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=5),
    st.integers(),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
)
hundredths = st.integers(-2_000, 2_000).map(lambda i: i / 100)
kinds = st.sampled_from(
    [
        None,
        "cosine",
        "inner_product",
        "distance",
        "l2",
        "l2_squared",
        "bm25",
        "rrf",
        "cross_encoder_logit",
        "probability",
        "unknown",
    ]
)


@given(st.lists(garbage, max_size=30), kinds, st.sampled_from([None, True, False]))
def test_bounded_on_anything(scores, kind, higher):
    assert 0.0 <= estimate_noise(scores, score_kind=kind, higher_is_better=higher) <= 1.0


def _only_ranks(scores):
    return signal_of([Passage("", score=s) for s in scores]).reason.startswith("the scores only repeat")


@given(st.lists(hundredths, min_size=3, max_size=25), st.integers(1, 50), st.integers(-40, 40))
def test_positive_affine_maps_change_nothing(scores, factor, shift):
    mapped = [factor * score + shift for score in scores]
    assume(_only_ranks(scores) == _only_ranks(mapped))  # 1 / (k + rank) is a rank at one shift only
    assert estimate_noise(mapped) == pytest.approx(estimate_noise(scores), abs=1e-6)


@given(st.lists(hundredths, min_size=3, max_size=25))
def test_distances_in_retrieval_order_read_like_the_similarities_they_mirror(scores):
    similarities = sorted(scores, reverse=True)
    distances = [30 - score for score in similarities]
    assume(_only_ranks(similarities) == _only_ranks(distances))
    assert estimate_noise(distances) == pytest.approx(estimate_noise(similarities), abs=1e-6)
    assert estimate_noise(similarities, higher_is_better=True) == pytest.approx(estimate_noise(similarities), abs=1e-9)


@given(st.lists(hundredths, min_size=3, max_size=25), st.randoms(use_true_random=False))
def test_with_known_orientation_the_order_does_not_matter(scores, random):
    shuffled = list(scores)
    random.shuffle(shuffled)
    assert estimate_noise(shuffled, higher_is_better=True) == pytest.approx(
        estimate_noise(scores, higher_is_better=True), abs=1e-9
    )


@pytest.mark.parametrize(
    "scores",
    [
        [None] * 8,
        [float("nan")] * 8,
        ["none"] * 8,
        [0.5] * 8,
        [1 / (61 + rank) for rank in range(8)],
        list(range(8)),
        [0.1 + 0.2, 0.3] * 4,
    ],
)
def test_scores_that_say_nothing_leave_the_count(scores):
    assert estimate_noise(scores) == pytest.approx(1 - 1 / 8)


def test_rrf_is_taken_for_ranks_whatever_its_numbers():
    assert estimate_noise([0.9, 0.2, 0.1, 0.1], score_kind="rrf") == 0.75


def test_one_passage_and_none():
    assert estimate_noise([]) == 0.0
    assert estimate_noise([0.7]) == 0.0
    assert estimate_noise([0.9, 0.1]) == 0.5


def test_one_that_stands_out_beats_three_and_a_flat_list_is_no_find():
    one = estimate_noise([0.9, 0.31, 0.3, 0.3, 0.29, 0.29, 0.28, 0.28])
    three = estimate_noise([0.9, 0.89, 0.88, 0.3, 0.29, 0.29, 0.28, 0.28])
    assert three < one < 1.0
    plateau_with_a_hole = estimate_noise([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1])
    assert plateau_with_a_hole > three


def test_squared_l2_from_faiss_is_seen_as_a_distance():
    distances = [0.21, 0.9, 0.95, 1.0, 1.03]
    assert estimate_noise(distances) == pytest.approx(estimate_noise(distances, score_kind="l2_squared"))
    assert estimate_noise(distances) != pytest.approx(estimate_noise(distances, higher_is_better=True))


def test_a_shuffled_list_is_not_taken_for_distances():
    scores = [0.2, 0.9, 0.1, 0.3, 0.15]
    assert estimate_noise(scores) == pytest.approx(estimate_noise(scores, higher_is_better=True))


def test_absolute_kinds_tell_all_good_from_all_bad():
    assert estimate_noise([0.99, 0.98, 0.97], score_kind="probability") == pytest.approx(0.02)
    assert estimate_noise([0.03, 0.02, 0.01], score_kind="probability") == pytest.approx(0.98)
    assert estimate_noise([9.0, -9.0], score_kind="cross_encoder_logit") == pytest.approx(0.5, abs=1e-3)
    assert estimate_noise([0.0, 0.0, 0.0], score_kind="bm25") == 1.0


def test_zero_bm25_cannot_be_a_stand_out():
    scores = [1.0, 0.0, 0.0, 0.0, -1.0]
    assert estimate_noise(scores, score_kind="bm25") > estimate_noise(scores)


def test_passages_without_score_are_as_noisy_as_the_others():
    scores = [0.9, 0.31, 0.3, 0.25]
    assert estimate_noise([*scores, None, "?"]) == pytest.approx(estimate_noise(scores))


def test_extreme_numbers_do_not_overflow():
    for scores in (
        [1e308, -1e308, 0.0, 5.0],
        [5e-324, 0.0, 0.0],
        ["1e400", 1, 2, 4],
        [10**400, 1.0, 2.0, 4.0],
    ):
        assert math.isfinite(estimate_noise(scores))


def test_unknown_kind_is_refused_with_the_choices():
    with pytest.raises(InvalidInputError, match="cross_encoder_logit"):
        estimate_noise([1.0], score_kind="vibes")


def test_signal_says_where_the_noise_comes_from():
    passages = [Passage("a", score=0.9), Passage("b", score=0.31), Passage("c", score=0.3)]
    scored = signal_of(passages)
    assert (scored.n_passages, scored.source) == (3, "scores")
    assert scored.noise == estimate_noise([0.9, 0.31, 0.3])
    assert signal_of([Passage("a"), Passage("b")]).source == "count"
    given_ = signal_of(passages, noise=0.4)
    assert (given_.noise, given_.source) == (0.4, "given")


@pytest.mark.parametrize(
    ("scores", "options", "expected"),
    [
        ([0.9, 0.5, 0.5, 0.1], {}, True),
        ([0.9, None, 0.5], {}, True),
        ([0.9, 0.1, 0.5], {}, False),
        ([0.1, 0.4, 0.6, 0.9], {}, True),  # rising scores are distances
        ([0.1, 0.4, 0.6, 0.9], {"higher_is_better": True}, False),
        ([0.9, 0.4, 0.1], {"score_kind": "l2"}, False),
        ([0.9, 0.4, 0.1], {"noise": 0.5}, True),
        ([0.5, 0.5], {}, None),
        ([0.5, None], {}, None),
        ([], {}, None),
    ],
)
def test_signal_tells_whether_passages_stand_best_first(scores, options, expected):
    passages = [Passage(str(place), score=score) for place, score in enumerate(scores)]
    assert signal_of(passages, **options).in_order is expected


def test_the_order_is_that_of_the_prompt_and_the_orientation_that_of_the_retrieval():
    similarities = [Passage(str(score), score=score) for score in (0.9, 0.5, 0.1)]
    distances = similarities[::-1]
    for passages in (similarities, distances):
        assert signal_of(passages, shown=[0, 1, 2]).in_order is True
        assert signal_of(passages, shown=[0, 2]).in_order is True
        assert signal_of(passages, shown=[2, 1, 0]).in_order is False
        assert signal_of(passages, shown=[1]).in_order is None


def test_zero_is_no_sign_of_irrelevance_for_distances():
    distances = [0.1, 0.5, 0.6, 0.63]
    cosine = estimate_noise(distances, score_kind="cosine", higher_is_better=False)
    assert cosine == estimate_noise(distances, score_kind="distance")
    assert estimate_noise([-value for value in distances], score_kind="cosine") == 1.0


@pytest.mark.parametrize("kind", ["nonsense", ["cosine"], 3])
def test_kinds_that_do_not_exist_are_refused_everywhere(kind):
    passages = [Passage("a", score=0.5), Passage("b", score=0.1)]
    for call in (signal_of, lambda some, **more: signal_of(some, noise=0.5, **more)):
        with pytest.raises(InvalidInputError, match="Unknown score_kind"):
            call(passages, score_kind=kind)


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan"), float("inf"), "much"])
def test_bad_given_noise_is_refused(noise):
    with pytest.raises(InvalidInputError, match=r"\[0, 1\]"):
        signal_of([Passage("a")], noise=noise)
