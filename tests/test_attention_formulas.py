"""Tensor mathematics against formulas written out, without any model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_rag.attention.attention_call import AttentionCall, head_weights, last_position, rows_alone
from focus_rag.attention.formulas import (
    aligned_membership,
    head_exponents,
    rows_of,
    span_mass,
    span_membership,
    split_output,
    split_weights,
)
from focus_rag.query_layouts import as_heads, laid_out

FORMATS = ("flat", "tokens_heads", "heads_tokens", "fused_flat", "fused_interleaved")


def random_call(seed=0, *, batch=2, heads=4, key_heads=2, tokens=6, keys=9, size=8, **extra):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, tokens, size, generator=generator)
    key, value = (torch.randn(batch, key_heads, keys, size, generator=generator) for _ in range(2))
    return AttentionCall(query, key, value, extra.pop("mask", None), size**-0.5, **extra)


def written_out(call, hidden):
    """Attention weights of every head and row; `hidden` (batch, tokens, keys) True where a row must not look."""
    repeat = call.query.shape[1] // call.key.shape[1]
    key = call.key.repeat_interleave(repeat, dim=1)
    logits = torch.einsum("bhtd,bhkd->bhtk", call.query, key) * call.scaling
    if call.softcap:
        logits = torch.tanh(logits / call.softcap) * call.softcap
    logits = logits.masked_fill(hidden[:, None], -float("inf"))
    if call.sinks is not None:
        sink = call.sinks[None, :, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sink], dim=-1)
        return logits.softmax(-1)[..., :-1]
    return logits.softmax(-1)


def weights_of(call, heads, rows):
    parts = {}
    for group, weights in head_weights(call, heads, rows):
        parts.update({head: weights[:, index] for index, head in enumerate(group)})
    return torch.stack([parts[head] for head in heads], dim=1)


def causal(tokens, keys, window=None):
    row, key = torch.arange(tokens)[:, None] + keys - tokens, torch.arange(keys)[None]
    return (key > row) | ((key <= row - window) if window else torch.zeros_like(key > row))


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("extra", [{}, {"softcap": 1.5}, {"sinks": torch.tensor([0.3, -1.0, 2.0, 0.0])}], ids=str)
@pytest.mark.parametrize("kind", ["none", "boolean", "additive", "padding"])
def test_weights_of_chosen_heads_and_rows(kind, extra, window):
    padding = torch.ones(2, 9, dtype=torch.bool)
    padding[1, :2] = False
    hidden = causal(6, 9, window)[None] | (
        ~padding[:, None] if kind != "none" else torch.zeros(2, 1, 9, dtype=torch.bool)
    )
    mask = {
        "none": None,
        "boolean": ~hidden[:, None],
        "additive": torch.zeros(2, 1, 6, 9).masked_fill(hidden[:, None], torch.finfo(torch.float32).min),
        "padding": padding,
    }[kind]
    if kind == "none":  # sdpa's own causal mask: as many keys as tokens
        call = random_call(tokens=9, keys=9, window=window, **extra)
        hidden = causal(9, 9, window)[None].expand(2, -1, -1)
    else:
        call = random_call(mask=mask, window=window, **extra)
    rows, heads = torch.tensor([5, 1, 3]), [3, 0, 2]
    expected = written_out(call, hidden)[:, heads][:, :, rows]
    assert torch.allclose(weights_of(call, heads, rows), expected, atol=1e-6)


def test_the_empty_tail_of_a_static_cache_is_not_seen():
    call = random_call(tokens=6, keys=9)
    short = AttentionCall(call.query, call.key[:, :, :6], call.value[:, :, :6], None, call.scaling)
    rows = torch.arange(6)
    assert torch.equal(weights_of(call, [0, 1], rows), weights_of(short, [0, 1], rows))
    assert torch.allclose(weights_of(short, [0, 1], rows), written_out(short, causal(6, 6)[None])[:, :2], atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "keys", "mask", "position"),
    [
        (1, 9, None, 8),
        (6, 9, None, 5),
        (6, 9, torch.ones(2, 9, dtype=torch.bool), 8),
        (1, 9, torch.arange(9)[None, None, None] < 4, 3),
        (1, 9, torch.where(torch.arange(9)[None, None, None] < 7, 0.0, torch.finfo(torch.float32).min), 6),
        (2, 9, ~causal(2, 5)[None, None].expand(2, 1, 2, 5), 4),
    ],
)
def test_where_the_last_query_stands(tokens, keys, mask, position):
    if isinstance(mask, torch.Tensor) and mask.dim() == 4 and mask.shape[-1] < keys:
        mask = torch.cat([mask, torch.zeros(2, 1, tokens, keys - mask.shape[-1], dtype=torch.bool)], dim=-1)
    assert last_position(random_call(tokens=tokens, keys=keys, mask=mask)) == position


@pytest.mark.parametrize("query_format", FORMATS)
def test_a_shift_reaches_its_heads_and_nothing_else(query_format):
    heads, size, width = 3, 4, 40 if query_format == "fused_flat" else 36
    shift = torch.randn(2, heads, size)
    output = {
        "flat": torch.randn(2, 5, heads * size),
        "tokens_heads": torch.randn(2, 5, heads, size),
        "heads_tokens": torch.randn(2, heads, 5, size),
        "fused_flat": torch.randn(2, 5, width),
        "fused_interleaved": torch.randn(2, 5, width),
    }[query_format]
    shifted = output + laid_out(shift, query_format, output.shape[-1])
    moved = as_heads(shifted, query_format, heads, size) - as_heads(output, query_format, heads, size)
    assert torch.allclose(moved, shift[:, :, None].expand_as(moved), atol=1e-6)
    assert int((shifted != output).sum()) == shift.numel() * 5, "keys and values of a fused projection stay"


def test_rows_of_beams_and_of_batches_that_do_not_fit():
    alpha = torch.tensor([1.0, 2.0])
    assert rows_of(alpha, 2).tolist() == [1.0, 2.0]
    assert rows_of(alpha, 6).tolist() == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    assert rows_of(alpha, 3) is None
    assert rows_of(alpha[:1], 5).tolist() == [1.0]


def test_memberships_of_unequal_requests():
    member = span_membership([[(0, 2), (3, 4)], [(1, 5)], []], 5, torch.device("cpu"))
    assert member.shape == (3, 5, 2)
    assert member[0, :, 0].tolist() == [1, 1, 0, 0, 0]
    assert member[0, :, 1].tolist() == [0, 0, 0, 1, 0]
    assert member[1].sum(0).tolist() == [4, 0]
    assert member[2].sum() == 0


@pytest.mark.parametrize(
    ("keys", "seen", "expected"),
    [(5, 5, [0, 1, 1, 0, 1]), (7, 7, [0, 1, 1, 0, 1]), (3, 5, [1, 0, 1]), (3, 7, [1]), (3, 9, []), (8, 5, [0, 1, 1, 0, 1])],
)  # fmt: skip
def test_membership_follows_growing_rolling_and_static_caches(keys, seen, expected):
    member = torch.tensor([0.0, 1, 1, 0, 1])[None, :, None]
    assert aligned_membership(member, keys, seen)[0, :, 0].tolist() == expected


def test_span_mass_is_the_sum_of_weights_in_the_order_of_heads():
    call = random_call(tokens=9, keys=9)
    member = span_membership([[(0, 3), (3, 9)], [(2, 4), (4, 4)]], 9, torch.device("cpu"))
    weights = written_out(call, causal(9, 9)[None])
    mass = span_mass(call, [2, 0, 3], torch.tensor([8, 4]), member)
    assert mass.shape == (2, 3, 2, 2)
    assert torch.allclose(mass[0, 0, 0, 0], weights[0, 2, 8, :3].sum(), atol=1e-6)
    assert torch.allclose(mass[1, 1, 1, 0], weights[1, 0, 4, 2:4].sum(), atol=1e-6)
    assert torch.allclose(mass[0].sum(-1), torch.ones(3, 2), atol=1e-6)
    assert mass[1, :, :, 1].abs().max() == 0


class TestSplitSoftmax:
    @given(
        st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=12),
        st.integers(1, 10),
        st.floats(0.01, 1.0),
    )
    @settings(max_examples=150, deadline=None)
    def test_mass_becomes_its_power_and_order_within_stays(self, logits, cut, tau):
        weights = torch.tensor(logits, dtype=torch.float64).softmax(-1)
        cut = min(cut, len(logits) - 1)
        in_span = torch.arange(len(logits)) < cut
        split = split_weights(weights, in_span, tau)
        mass = weights[in_span].sum()
        assert torch.allclose(split.sum(), torch.ones((), dtype=torch.float64), atol=1e-9)
        assert torch.allclose(split[in_span].sum(), mass**tau, atol=1e-9)
        for part in (in_span, ~in_span):
            assert torch.allclose(split[part] * weights[part].sum(), weights[part] * split[part].sum(), atol=1e-9)

    def test_it_is_a_constant_on_the_spans_logits(self):
        logits = torch.randn(4, 7, dtype=torch.float64)
        in_span = torch.tensor([0, 1, 1, 0, 0, 1, 0]).bool()
        p = logits.softmax(-1)[:, in_span].sum(-1, keepdim=True)
        raised = p**0.1
        bias = torch.log(raised / p * (1 - p) / (1 - raised))
        assert torch.allclose(
            split_weights(logits.softmax(-1), in_span, 0.1), (logits + bias * in_span).softmax(-1), atol=1e-12
        )

    def test_tau_one_and_masses_zero_and_one_change_nothing(self):
        weights = torch.randn(3, 6).softmax(-1)
        assert torch.allclose(split_weights(weights, torch.arange(6) < 2, 1.0), weights, atol=1e-6)
        assert torch.equal(split_weights(weights, torch.zeros(6, dtype=torch.bool), 0.1), weights)
        nothing = torch.tensor([[0.0, 0.0, 1.0]])
        assert torch.equal(split_weights(nothing, torch.tensor([True, True, False]), 0.1), nothing)
        assert torch.equal(split_weights(nothing, torch.tensor([False, False, True]), 0.1), nothing)

    @pytest.mark.parametrize("tau", [0.1, 0.7])
    @pytest.mark.parametrize("extra", [{}, {"softcap": 2.0}, {"sinks": torch.tensor([0.3, -1.0, 2.0, 0.0])}], ids=str)
    def test_output_equals_weights_times_values(self, extra, tau):
        """Heads that share keys, rows chosen per sequence, one row that sees none of the span."""
        call = random_call(tokens=9, keys=9, **extra)
        weights = written_out(call, causal(9, 9)[None])
        value = call.value.repeat_interleave(2, dim=1)
        output = torch.einsum("bhtk,bhkd->bthd", weights, value)
        in_span = torch.zeros(2, 9)
        in_span[0, 3:6] = in_span[1, 5:8] = 1
        rows, heads = torch.tensor([2, 6, 8]), [1, 3, 2]
        chosen = torch.tensor([[True, True, True], [True, False, True]])
        expected = output.clone()
        split = torch.einsum("bhtk,bhkd->bthd", split_weights(weights, in_span[:, None, None].bool(), tau), value)
        for sequence in range(2):
            for row, is_chosen in zip(rows.tolist(), chosen[sequence].tolist(), strict=True):
                if is_chosen:
                    expected[sequence, row, heads] = split[sequence, row, heads]
        exponents = head_exponents(heads, 4, torch.tensor([tau]))
        result = split_output(call, output.clone(), heads, rows, in_span, exponents, chosen)
        assert torch.allclose(result, expected, atol=2e-6)
        assert torch.equal(result[:, :2], output[:, :2])
        assert (result - output).abs().max() > 1e-2

    @pytest.mark.parametrize("heads", [[0], [0, 1], [0, 3]], ids=str)
    def test_gradients_flow_through_it(self, heads):
        call = random_call(tokens=1, heads=4, key_heads=2)
        call.query.requires_grad_()
        value = call.value.repeat_interleave(2, dim=1)
        output = torch.einsum("bhtk,bhkd->bthd", written_out(call, torch.zeros(2, 1, 9, dtype=torch.bool)), value)
        in_span = torch.zeros(1, 9)
        in_span[0, 2:5] = 1
        split_output(
            call, output.clone(), heads, None, in_span, head_exponents(heads, 4, torch.tensor([0.2]))
        ).square().sum().backward()
        found, call.query.grad = call.query.grad.clone(), None
        weights = written_out(call, torch.zeros(2, 1, 9, dtype=torch.bool))
        split = split_weights(weights, in_span[:, None, None].bool(), 0.2)
        is_split = torch.tensor([head in heads for head in range(4)])[:, None, None]
        torch.einsum("bhtk,bhkd->bthd", torch.where(is_split, split, weights), value).square().sum().backward()
        assert torch.allclose(found, call.query.grad, atol=1e-5)

    def test_keys_that_are_copied_are_not_too_many_at_a_time(self, monkeypatch):
        from focus_rag.attention import attention_call

        call = random_call(heads=8, key_heads=8, tokens=1)
        half = AttentionCall(call.query.bfloat16(), call.key.bfloat16(), call.value.bfloat16(), None, call.scaling)
        member = torch.ones(1, 3, 1)
        whole = span_mass(half, range(8), None, member)
        assert [len(group) for (groups,) in [half.shared.values()] for group, _ in groups] == [8]
        monkeypatch.setattr(attention_call, "_KEYS_AT_ONCE", 3 * half.key[:, 0].numel())
        bounded = AttentionCall(half.query, half.key, half.value, None, call.scaling)
        assert torch.allclose(span_mass(bounded, range(8), None, member), whole, atol=1e-6)
        assert [len(group) for (groups,) in [bounded.shared.values()] for group, _ in groups] == [3, 3, 2]

    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("heads", [[2], [3, 0], [5, 2, 3, 7], [6, 1]], ids=str)
    def test_a_decoding_step_works_on_neighbours_at_once_and_changes_only_its_own_heads(self, heads, dtype, batch):
        call = random_call(batch=batch, heads=8, key_heads=4, tokens=1)
        call = AttentionCall(call.query.to(dtype), call.key.to(dtype), call.value.to(dtype), None, call.scaling)
        full = AttentionCall(call.query.float(), call.key.float(), call.value.float(), None, call.scaling)
        weights = written_out(full, torch.zeros(batch, 1, 9, dtype=torch.bool))
        value = full.value.repeat_interleave(2, dim=1)
        output = torch.einsum("bhtk,bhkd->bthd", weights, value).to(dtype)
        member = span_membership([[(2, 5)]], 6, torch.device("cpu"))  # the last keys are the answer's
        in_span = torch.nn.functional.pad(member[..., 0], (0, 3))
        taus = torch.linspace(0.05, 0.5, batch)
        mass = span_mass(call, heads, None, member)
        exponents = head_exponents(heads, 8, taus)
        result = split_output(call, output.clone(), heads, None, member[..., 0], exponents)
        assert len(call.shared) == 1, "what was measured is not computed again to be split"
        assert torch.allclose(mass[..., 0], (weights * in_span[:, None, None]).sum(-1)[:, heads], atol=1e-5)
        others = [head for head in range(8) if head not in heads]
        assert torch.equal(result[:, :, others], output[:, :, others])
        for sequence in range(batch):
            split = split_weights(weights[sequence], in_span.bool(), float(taus[sequence]))
            expected = torch.einsum("htk,hkd->thd", split, value[sequence])[:, heads]
            assert torch.allclose(
                result[sequence, :, heads].float(), expected, atol=2e-2 if dtype == torch.bfloat16 else 2e-6
            )


def test_rows_of_a_call_do_not_inherit_its_weights():
    call = random_call(tokens=6, keys=6)
    whole = span_mass(call, [0, 1], None, torch.ones(1, 3, 1))
    assert call.shared and rows_alone(call, 0, 6) is call
    part = rows_alone(call, 2, 4)
    assert not part.shared
    assert torch.allclose(span_mass(part, [0, 1], None, torch.ones(1, 3, 1)), whole[:, :, 2:4], atol=1e-6)
