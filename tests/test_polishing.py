"""The polish lowers the loss of the response through the focused model, and changes nothing but the directions."""

from __future__ import annotations

import pytest
import torch
from planted_model import planted_examples
from tiny_models import tiny_model

from focus_rag.attention.steering import focus
from focus_rag.errors import InvalidInputError
from focus_rag.fingerprint import Fingerprint
from focus_rag.fitting.polishing import PolishSettings, polish_directions, response_loss
from focus_rag.profile import FocusProfile, HeadEntry

HEADS = [(0, 1), (2, 3)]
SETTINGS = PolishSettings(steps=12, batch_examples=3, learning_rate=0.3)


def profile_of(model: torch.nn.Module, site: str = "post_rope", directions: torch.Tensor | None = None) -> FocusProfile:
    if directions is None:
        directions = torch.randn(len(HEADS), 8, generator=torch.Generator().manual_seed(5))
    entries = [HeadEntry(layer=layer, head=head) for layer, head in HEADS]
    return FocusProfile(Fingerprint.of(model), entries, directions, site=site)  # type: ignore[arg-type]


def loss_under(model: torch.nn.Module, directions: torch.Tensor, site: str) -> float:
    with torch.no_grad(), focus(model, profile_of(model, site, directions), 1.0):
        return sum(float(response_loss(model, example)) for example in planted_examples(4))


@pytest.mark.parametrize("site", ["post_rope", "normed"])
def test_it_lowers_the_loss_of_the_response_and_leaves_the_weights_alone(site: str) -> None:
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = profile_of(model, site)
    polished = polish_directions(model, start, planted_examples(4), SETTINGS)
    assert loss_under(model, polished, site) < loss_under(model, start.directions, site)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not polished.requires_grad


def test_its_gradient_is_the_slope_of_the_loss() -> None:
    model = tiny_model("llama").double()
    start, example = profile_of(model), planted_examples(1)[0]
    step = PolishSettings(steps=1, batch_examples=1, learning_rate=1.0)
    moved = polish_directions(model, start, [example], step) - start.directions

    def loss_at(directions: torch.Tensor) -> float:
        with torch.no_grad(), focus(model, profile_of(model, directions=directions), 1.0):
            return float(response_loss(model, example))

    # Adam's first step is the sign of the gradient.
    for head, place in ((0, 0), (0, 5), (1, 3)):
        nudge = torch.zeros_like(start.directions)
        nudge[head, place] = 1e-2
        slope = loss_at(start.directions + nudge) - loss_at(start.directions - nudge)
        assert torch.sign(moved[head, place]) == -torch.sign(torch.tensor(slope, dtype=torch.float32))


def test_no_steps_change_nothing_and_seeds_repeat() -> None:
    model = tiny_model("llama")
    start = profile_of(model)
    assert torch.equal(polish_directions(model, start, planted_examples(2), PolishSettings()), start.directions)
    runs = [polish_directions(model, start, planted_examples(4), SETTINGS) for _ in range(2)]
    assert torch.equal(*runs)


def test_nothing_to_polish_on_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(InvalidInputError):
        polish_directions(model, profile_of(model), [], SETTINGS)
