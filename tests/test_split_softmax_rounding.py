"""Split softmax where a head puts next to nothing on the span, as sharp heads do."""

from __future__ import annotations

import pytest
import torch

from focus_rag.attention.formulas import AttentionCall, head_exponents, split_output, split_weights


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
