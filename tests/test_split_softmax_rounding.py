"""Split softmax where a head puts next to nothing on the span, as sharp heads do."""

from __future__ import annotations

import pytest
import torch

from focus_rag.attention.attention_call import AttentionCall
from focus_rag.attention.formulas import head_exponents, split_output, split_weights


@pytest.mark.parametrize("distance", [60.0, 87.0, 95.0, 103.0, 200.0])
@pytest.mark.parametrize("tau", [0.01, 0.1, 0.9])
def test_a_vanishing_span_gives_finite_outputs(distance: float, tau: float) -> None:
    logits = torch.tensor([0.0, -distance, -0.5])
    in_span = torch.tensor([False, True, False])
    weights = split_weights(logits.softmax(dim=-1), in_span, tau)
    assert torch.isfinite(weights).all() and float(weights.sum()) == pytest.approx(1.0, abs=1e-5)

    query = torch.ones(1, 1, 1, 1)
    key, value = logits[None, None, :, None], torch.tensor([[[[1.0], [2.0], [3.0]]]])
    call = AttentionCall(query, key, value, None, 1.0)
    output = (logits.softmax(dim=-1) @ value[0, 0]).view(1, 1, 1, 1)
    changed = split_output(
        call, output.clone(), [0], None, in_span[None].float(), head_exponents([0], 1, torch.tensor([tau]))
    )
    assert float(changed) == pytest.approx(float(weights @ value[0, 0, :, 0]), abs=1e-4)


def sharp_heads(dtype: torch.dtype) -> tuple[AttentionCall, torch.Tensor, torch.Tensor]:
    """Heads with all of their mass on the span, a sum that passes 1 by a rounding in some of them; what the kernel puts
    out; the span.
    """
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 64, 1, 16), torch.randn(1, 64, 2000, 16), torch.randn(1, 64, 2000, 16)
    query[..., 0], key[..., 0] = 20.0, 20.0
    key[:, :, :20, 0] = -20.0
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    in_span = (torch.arange(2000) >= 20).float()[None]
    call = AttentionCall(query, key, value, None, 0.25)
    return (
        call,
        torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.25).transpose(1, 2),
        in_span,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-3)])
def test_a_span_that_has_all_of_the_mass_stays_as_it_is(dtype: torch.dtype, tolerance: float) -> None:
    call, output, in_span = sharp_heads(dtype)
    mass = ((call.query.float() @ call.key.float().mT * 0.25).softmax(dim=-1) * in_span).sum(dim=-1)
    assert (mass > 1).any()
    with torch.inference_mode():
        changed = split_output(
            call, output.clone(), range(64), None, in_span, head_exponents(range(64), 64, torch.tensor([0.05]))
        )
    exact = ((call.query.double() @ call.key.double().mT * 0.25).softmax(dim=-1) @ call.value.double()).transpose(1, 2)
    assert float(((changed - exact).norm(dim=-1) / exact.norm(dim=-1)).max()) < tolerance


@pytest.mark.parametrize("grad", [False, True])
def test_an_exponent_of_1_leaves_sharp_heads_as_they_are_to_the_bit(grad: bool) -> None:
    call, output, in_span = sharp_heads(torch.bfloat16)
    with torch.set_grad_enabled(grad):
        assert torch.equal(
            split_output(call, output.clone(), range(64), None, in_span, torch.ones(1, 64, 1, 1)), output
        )
