"""Alpha policies: monotone, bounded, nothing for one passage, and the same after a round trip through
JSON."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from focus_rag.alpha import AlphaPolicy, FittedAlpha, FixedAlpha, RetrievalAlpha
from focus_rag.passages import RetrievalSignal

counts = st.integers(0, 500)
noises = st.floats(0, 1)
SURFACE = FittedAlpha(counts=(2, 5, 20), noises=(0.5, 0.9), alphas=((0.0, 0.1), (0.05, 0.2), (0.1, 0.4)))


def alpha(policy, n, noise):
    return policy.choose(RetrievalSignal(n, noise, "given", "test")).alpha


@pytest.mark.parametrize("policy", [RetrievalAlpha(), SURFACE])
@given(n=counts, more=st.integers(0, 50), noise=noises, louder=noises)
def test_rises_with_count_and_noise_and_keeps_its_bounds(policy, n, more, noise, louder):
    low, high = sorted((noise, louder))
    assert alpha(policy, n, low) <= alpha(policy, n + more, high) + 1e-12
    assert 0.0 <= alpha(policy, n, noise) <= 0.4


@pytest.mark.parametrize("policy", [RetrievalAlpha(), SURFACE])
@pytest.mark.parametrize("n", [0, 1])
def test_one_passage_or_none_gets_nothing(policy, n):
    choice = policy.choose(RetrievalSignal(n, 1.0, "given", "test"))
    assert choice.alpha == 0.0
    assert "nothing to choose" in choice.reason


def test_a_policy_that_needs_the_order_leaves_other_orders_alone():
    relying = SURFACE.model_copy(update={"needs_order": True})
    for in_order in (True, None):
        signal = RetrievalSignal(20, 0.9, "scores", "test", in_order)
        assert relying.choose(signal) == SURFACE.choose(signal)
    signal = RetrievalSignal(20, 0.9, "scores", "test", False)
    assert SURFACE.choose(signal).alpha == pytest.approx(0.4)
    choice = relying.choose(signal)
    assert choice.alpha == 0.0
    assert "order of their scores" in choice.reason


def test_prior_without_noise_is_zero_and_saturates_below_the_ceiling():
    prior = RetrievalAlpha()
    assert alpha(prior, 50, 0.0) == 0.0
    assert alpha(prior, 10**9, 1.0) == pytest.approx(prior.ceiling, abs=1e-6)
    assert alpha(prior, 5, 1.0) == pytest.approx(prior.ceiling / 2)
    assert 0.2 <= alpha(prior, 20, 0.95) <= 0.3


def test_fixed_wins_over_everything():
    assert alpha(FixedAlpha(alpha=-0.5), 0, 0.0) == -0.5


def test_surface_meets_its_knots_is_linear_in_log_count_and_holds_at_the_edges():
    for i, n in enumerate(SURFACE.counts):
        for j, noise in enumerate(SURFACE.noises):
            assert alpha(SURFACE, n, noise) == pytest.approx(SURFACE.alphas[i][j])
    assert alpha(SURFACE, 10, 0.9) == pytest.approx(0.3)  # 10 lies half-way from 5 to 20 in log count
    assert alpha(SURFACE, 10, 0.7) == pytest.approx((0.075 + 0.3) / 2)
    assert alpha(SURFACE, 1000, 1.0) == pytest.approx(0.4)
    assert alpha(SURFACE, 2, 0.0) == 0.0
    assert alpha(FittedAlpha(counts=(4,), noises=(0.5,), alphas=((0.2,),)), 9, 0.9) == 0.2


@pytest.mark.parametrize("policy", [FixedAlpha(alpha=0.25), RetrievalAlpha(ceiling=0.7, half_count=3), SURFACE])
def test_round_trip_through_json(policy):
    assert TypeAdapter(AlphaPolicy).validate_json(policy.model_dump_json()) == policy


@pytest.mark.parametrize(
    "fields",
    [
        dict(counts=(5, 5), noises=(0.5,), alphas=((0.1,), (0.1,))),
        dict(counts=(0, 5), noises=(0.5,), alphas=((0.1,), (0.1,))),
        dict(counts=(2,), noises=(0.5, 1.5), alphas=((0.1, 0.1),)),
        dict(counts=(2,), noises=(0.5, 0.9), alphas=((0.1,),)),
        dict(counts=(2, 4), noises=(0.5,), alphas=((0.1,),)),
        dict(counts=(2,), noises=(0.5,), alphas=((-0.1,),)),
        dict(counts=(2,), noises=(0.5,), alphas=((float("nan"),),)),
        dict(counts=(), noises=(0.5,), alphas=()),
    ],
)
def test_broken_surfaces_are_refused(fields):
    with pytest.raises(ValidationError):
        FittedAlpha(**fields)


def test_policies_are_frozen():
    with pytest.raises(ValidationError):
        FixedAlpha(alpha=0.1).alpha = 0.2


def test_among_fewer_passages_than_were_measured_nothing_is_done():
    fitted = FittedAlpha(counts=(1, 3, 8), noises=(0.5,), alphas=((0.0,), (0.4,), (0.8,)))
    assert alpha(fitted, 2, 0.5) == 0.0 and alpha(fitted, 3, 0.5) == 0.4
    assert 0.4 < alpha(fitted, 5, 0.5) < 0.8
    assert "fitted for 3 and more" in fitted.choose(RetrievalSignal(2, 0.5, "given", "")).reason
