"""Contextual scoring finds the heads that read the gold passage, and counts what an eager reference counts."""

from __future__ import annotations

import pytest
import torch
from planted_model import PLANTED, planted_examples, planted_model
from tiny_models import tiny_model

from focus_rag.errors import InvalidInputError
from focus_rag.fitting.head_scoring import PARTS, HeadScores, score_heads
from focus_rag.fitting.teacher_forcing import TeacherForced


def eager_masses(model: torch.nn.Module, example: TeacherForced, sink_tokens: int) -> torch.Tensor:
    """The same masses from the full attention matrices: `(layers, heads, parts)`."""
    with torch.no_grad():
        found = model(input_ids=torch.tensor([example.input_ids]), output_attentions=True).attentions
    weights = torch.stack([layer[0][:, list(example.rows)].mean(dim=1) for layer in found])

    def on(span: tuple[int, int]) -> torch.Tensor:
        return weights[..., span[0] : span[1]].sum(dim=-1)

    gold = torch.stack([on(span) for span in example.gold]).sum(dim=0)
    others = torch.stack([on(span) for span in example.others])
    sink = on((0, sink_tokens))
    return torch.stack([gold, others.sum(dim=0), others.amax(dim=0), sink, 1 - gold - others.sum(dim=0) - sink], dim=-1)


def test_planted_heads_are_found_in_order() -> None:
    scores = score_heads(planted_model(), planted_examples())
    assert scores.ranking()[:3] == PLANTED
    assert scores.of(PLANTED[2]) > 2 * scores.of(scores.ranking()[3])


@pytest.mark.parametrize("family", ["planted", "qwen3", "gemma2", "gemma3_text"])
def test_masses_equal_the_eager_reference(family: str) -> None:
    model = (
        planted_model()
        if family == "planted"
        else tiny_model(family, attention="eager" if family == "gemma2" else "sdpa")
    )
    eager = planted_model(attention="eager") if family == "planted" else tiny_model(family, attention="eager")
    examples = planted_examples()
    expected = torch.stack([eager_masses(eager, example, 2) for example in examples])
    scores = score_heads(model, examples, sink_tokens=2)
    torch.testing.assert_close(scores.mean, expected.mean(dim=0), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.standard_error, expected.std(dim=0) / len(examples) ** 0.5, atol=1e-5, rtol=0)


def test_parts_add_up_to_one() -> None:
    scores = score_heads(planted_model(), planted_examples(2))
    counted = scores.mean[..., [PARTS.index(part) for part in ("gold", "others", "sink", "rest")]].sum(dim=-1)
    torch.testing.assert_close(counted, torch.ones_like(counted), atol=1e-5, rtol=0)


def test_scores_survive_json() -> None:
    scores = score_heads(planted_model(), planted_examples(2))
    again = HeadScores.from_dict(scores.to_dict())
    torch.testing.assert_close(again.mean, scores.mean)
    assert again.ranking() == scores.ranking() and again.examples == 2


def test_no_examples_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one example"):
        score_heads(planted_model(), [])
