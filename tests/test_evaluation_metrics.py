import math

import pytest

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.metrics import (
    exact_match,
    normalised_answer,
    rouge_l,
    substring_match,
    text_scores,
    token_f1,
)
from focus_rag.evaluation.statistics import Interval, bootstrap_mean, paired_difference, sign_test
from focus_rag.fitting.estimate import Estimate

# answer, references, and what the published scorers give: SQuAD v1.1's evaluate-v1.1.py (exact, F1) and
# lost-in-the-middle's best_subspan_em on the first line.
PUBLISHED = [
    ("The Eiffel Tower!", ["eiffel tower"], 1, 1.0, 1),
    ("eiffel", ["the Eiffel Tower"], 0, 2 / 3, 0),
    ("It is the Eiffel Tower in Paris", ["Eiffel Tower"], 0, 0.5, 1),
    ("U.S.A.", ["USA"], 1, 1.0, 1),
    ("well-known", ["well known"], 0, 0.0, 0),
    ("", ["x"], 0, 0.0, 0),
    ("a the an", ["x"], 0, 0.0, 0),
    ("Paris\nLondon", ["London"], 0, 2 / 3, 0),
    ("Paris", ["London", "paris."], 1, 1.0, 1),
    ("the theatre", ["theatre"], 1, 1.0, 1),
    ("to be or not to be", ["to be"], 0, 0.5, 1),
    ("42", ["1942"], 0, 0.0, 0),
    ("1942", ["42"], 0, 0.0, 1),
    ("naïve café", ["naïve  café"], 1, 1.0, 1),
]


@pytest.mark.parametrize(("answer", "references", "exact", "f1", "substring"), PUBLISHED)
def test_scores_equal_the_published_scorers(answer, references, exact, f1, substring):
    assert exact_match(answer, references) == exact
    assert token_f1(answer, references) == pytest.approx(f1)
    assert substring_match(answer, references) == substring


def test_normalisation_deletes_punctuation_and_takes_articles_out_as_words_only():
    assert normalised_answer("  An answer: THE Cat's pyjamas (again) ") == "answer cats pyjamas again"
    assert normalised_answer("theatre and panther") == "theatre and panther"


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        # Longest common subsequences counted by hand: 5 of 6 words on both sides; 3 of 3 and 5; stems agree; none.
        ("the cat was on the mat", "the cat sat on the mat", 5 / 6),
        ("police kill gunman", "police killed the gunman today", 2 * (3 / 3) * (3 / 5) / (3 / 3 + 3 / 5)),
        ("running", "runs", 1.0),
        ("alpha", "beta", 0.0),
    ],
)
def test_rouge_l(answer, reference, value):
    pytest.importorskip("rouge_score")
    assert rouge_l(answer, ["nothing in common", reference]) == pytest.approx(value)


def test_quality_is_abstaining_where_that_is_right_and_the_answer_elsewhere():
    assert text_scores("not stated", ["Anna"], abstain=True)["quality"] == 1.0
    assert text_scores("Anna", ["Anna"], abstain=True)["quality"] == 0.0
    assert text_scores("not stated", ["Anna"], abstain=False)["quality"] == 0.0
    assert text_scores("Anna", ["Anna"], abstain=False)["quality"] == 1.0


def test_quality_is_the_match_that_was_asked_for():
    scores = text_scores("Anna, not stated", ["Anna"], abstain=False, grading="exact")
    assert scores["quality"] == scores["exact_match"] == 0.0 and scores["substring_match"] == 1.0
    assert text_scores("the Anna.", ["Anna"], abstain=False, grading="exact")["quality"] == 1.0
    assert text_scores("not stated", ["Anna"], abstain=True, grading="exact")["quality"] == 1.0


def test_wrong_answer_is_counted_only_without_the_right_one():
    assert text_scores("Bert", ["Anna"], abstain=False, wrong=["Bert"])["wrong_answer"] == 1.0
    assert text_scores("Anna or Bert", ["Anna"], abstain=False, wrong=["Bert"])["wrong_answer"] == 0.0
    assert "wrong_answer" not in text_scores("Anna", ["Anna"], abstain=False)


def test_bootstrap_interval_is_near_the_normal_one_and_repeats():
    values = [1.0] * 300 + [0.0] * 700
    interval = bootstrap_mean(values)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert interval.mean == pytest.approx(0.3)
    assert interval.low == pytest.approx(0.3 - half, abs=0.003)
    assert interval.high == pytest.approx(0.3 + half, abs=0.003)
    assert bootstrap_mean(values) == interval
    assert bootstrap_mean([]).n == 0


def test_all_right_or_all_wrong_is_not_certain():
    """Three in n is the well-known limit for something that was never seen; the exact one for both sides is 3.7 in n."""
    assert bootstrap_mean([1.0] * 50).low == pytest.approx(1 - 3.69 / 50, abs=0.003)
    assert bootstrap_mean([1.0] * 50).high == 1.0
    nothing = bootstrap_mean([0.0] * 50)
    assert (nothing.low, nothing.high) == (0.0, pytest.approx(0.0711, abs=1e-4))
    assert bootstrap_mean([0.0]).high == pytest.approx(0.975)
    assert bootstrap_mean([0.5] * 50) == Interval(0.5, 0.5, 0.5, 50)


def test_paired_difference_sees_what_unpaired_intervals_hide():
    reference = [0.0, 1.0] * 100
    method = [1.0] * 16 + reference[16:]
    difference = paired_difference(method, reference)
    assert difference.mean == pytest.approx(8 / 200)
    assert difference.low > 0
    assert difference.p == pytest.approx(2 * 0.5**8)
    assert paired_difference(reference, reference).p == 1.0
    with pytest.raises(InvalidInputError):
        paired_difference([1.0], [1.0, 2.0])


def test_better_and_worse_need_the_interval_and_the_test():
    reference = [0.0] * 80
    few = paired_difference([1.0] * 4 + reference[4:], reference)
    assert few.low > 0 and few.p == pytest.approx(0.125)
    assert not few.is_better and not few.is_worse
    many = paired_difference([1.0] * 8 + reference[8:], reference)
    assert many.is_better and not many.is_worse
    assert paired_difference(reference, [1.0] * 8 + reference[8:]).is_worse


@pytest.mark.parametrize(("better", "changed", "p"), [(0, 5, 0.0625), (1, 10, 22 / 1024), (5, 10, 1.0), (0, 0, 1.0)])
def test_sign_test_is_the_exact_binomial(better, changed, p):
    assert sign_test(better, changed) == pytest.approx(p)


def test_permutation_test_finds_a_real_shift_and_no_other():
    noise = [((i * 37) % 101 - 50) / 50 for i in range(101)]
    assert paired_difference([value + 0.3 for value in noise], [0.0] * 101).p < 0.01
    assert paired_difference(noise, [0.0] * 101).p > 0.3


def test_questions_that_are_all_answered_alike_rule_only_so_much_out():
    """With none of n changed, a true share of 1 - 0.025 ** (1 / n) would be met so in one of 40 samples."""
    for n, off in ((10, 0.3085), (150, 0.0243)):
        same = paired_difference([1.0, 0.0] * (n // 2), [1.0, 0.0] * (n // 2))
        assert (same.mean, same.p, same.n) == (0.0, 1.0, n)
        assert (-same.low, same.high) == pytest.approx((off, off), abs=1e-4)
        estimate = Estimate.of([0.0] * n)
        assert (-estimate.low, estimate.high) == pytest.approx((off, off), abs=1e-4)
    assert Estimate.of([1 / 3] * 10).low < 0.1 and paired_difference([0.3, 0.8, 0.6], [0.2, 0.7, 0.5]).low < -0.5
    assert Estimate.of([1.0] * 4).high == paired_difference([1] * 5, [0] * 5).high == 1.0
    assert Estimate.of([0.0] * 9 + [1.0]).low == pytest.approx(0.1 - 1.96 * 0.1)
