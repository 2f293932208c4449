"""Polish focus directions on the model itself: a few steps of gradient descent on what the focused model says.

Directions are trained head by head on activations of the bare model (`focus_rag.fitting.direction_training`). All of
them in force at once change the activations that later layers see, and mass on gold is a means, not the end. The polish
goes on from there with fresh activations, and minimises the loss of the response itself. It runs the model forward and
backward, so it costs what training costs; the model's weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from focus_rag.attention.steering import FocusHandle
from focus_rag.errors import InvalidInputError
from focus_rag.fitting.teacher_forcing import TeacherForced
from focus_rag.probing import input_device
from focus_rag.profile import FocusProfile


class PolishSettings(BaseModel):
    """How long and how hard to polish.

    Attributes:
        steps: Optimizer steps; 0 leaves the polish out.
        batch_examples: Examples per step.
        learning_rate: Of Adam, lowered to 0 along a cosine, as a share of the mean norm of the directions.
        seed: Order of the examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=0, ge=0)
    batch_examples: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=0.01, gt=0)
    seed: int = 0


def polish_directions(
    model: nn.Module,
    profile: FocusProfile,
    examples: Sequence[TeacherForced],
    settings: PolishSettings,
    *,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Directions whose sum of losses over the responses is lower at alpha 1.

    Args:
        model: The model; its weights are not changed.
        profile: Heads and the directions to start from.
        examples: Teacher-forced training examples; `rows` count.
        settings: Steps and learning rate.
        progress: Called with the number of steps done.

    Returns:
        `(heads, head_dim)` float32, in the order of `profile.heads`.

    Raises:
        InvalidInputError: No examples.
    """
    if not examples:
        raise InvalidInputError("Polishing directions needs teacher-forced examples; got none.")
    directions = profile.directions.clone().float().requires_grad_()
    size = float(profile.directions.norm(dim=1).mean()) / profile.directions.shape[1] ** 0.5
    optimiser = torch.optim.Adam([directions], lr=settings.learning_rate * max(size, 1e-3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(settings.steps, 1))
    order = _endless(len(examples), settings.seed)
    handle = FocusHandle(model, profile, 1.0).attach()
    try:
        with _frozen(model), torch.enable_grad():
            for step in range(1, settings.steps + 1):
                total = torch.zeros_like(directions)
                for _ in range(settings.batch_examples):
                    example = examples[next(order)]
                    handle.set_directions(directions)
                    handle.set_passages_at(example.passages_at)
                    loss = response_loss(model, example)
                    total += torch.autograd.grad(loss, directions)[0] / settings.batch_examples
                directions.grad = total
                optimiser.step()
                schedule.step()
                if progress is not None:
                    progress(step)
    finally:
        handle.remove()
    return directions.detach()


def response_loss(model: nn.Module, example: TeacherForced) -> Tensor:
    """Mean cross-entropy of the response tokens, in nats."""
    device = input_device(model)
    ids = torch.tensor([example.input_ids], device=device)
    kept = ids.shape[1] - example.rows[0]
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits[0]
    rows = torch.tensor(example.rows, device=device)
    return nn.functional.cross_entropy(logits[rows - example.rows[0]].float(), ids[0, rows + 1])


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for the model's own weights, which would cost time and memory."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _endless(count: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
