"""Learn focus directions: the query shift that makes a contextual head look at the relevant passage.

Queries of the response rows and the keys they see are recorded once, from the bare model. With both fixed, each head is
a problem of its own in `head_dim` numbers, so all heads of all layers train together and the model takes no part: what
Zhu et al. (arXiv 2503.23306) do layer by layer on stored hidden states. The key direction of their formulation is left
out because it has no gradient: the same vector added to every key adds one constant to a row of logits, which softmax
removes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from focus_rag.errors import InvalidInputError
from focus_rag.fitting.head_scoring import Head
from focus_rag.fitting.recorded_heads import Batch, Recording, padded_batch
from focus_rag.model_layout import Site

LossKind = Literal["mass", "log_mass", "contrast"]
"""`mass`: minus the mean mass on gold (published). `log_mass`: minus the mean log mass. `contrast`: minus the mean log
of gold's share of the mass on all passages, which leaves the sink out of account.
"""


class TrainingSettings(BaseModel):
    """How directions are learned.

    Attributes:
        loss: See `LossKind`.
        learning_rate: Of AdamW, reached after no warm-up and lowered to 0 along a cosine.
        weight_decay: Of AdamW; pulls directions towards 0, where the model is bare.
        epochs: Passes over the training examples.
        batch_examples: Examples per step.
        check_every: Epochs between looks at the held-out examples; each head keeps its best direction.
        seed: Order of the examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: LossKind = "log_mass"
    learning_rate: float = Field(default=0.05, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    epochs: int = Field(default=30, ge=1)
    batch_examples: int = Field(default=16, ge=1)
    check_every: int = Field(default=2, ge=1)
    seed: int = 0


def log_masses(recording: Recording, batch: Batch, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Log mass on gold and on all passages under directions.

    Heads that share keys are taken together, so keys are never copied per query head.

    Returns:
        Two tensors `(batch, heads, rows)`: log probability mass.
    """
    queries = recording.shifted(batch, directions)
    order: list[int] = []
    found: list[tuple[Tensor, Tensor]] = []
    for slot, (layer, _) in enumerate(recording.slots):
        heads = [head for head, one in enumerate(recording.key_of.tolist()) if one == slot]
        shared = queries[:, heads].flatten(1, 2) @ batch.keys[:, slot].transpose(1, 2)
        logits = shared.unflatten(1, (len(heads), -1)) * recording.scaling[heads].to(shared.device)[None, :, None, None]
        if recording.softcap:
            logits = recording.softcap * torch.tanh(logits / recording.softcap)
        logits = logits.masked_fill(~batch.visible[:, layer, None], float("-inf"))
        total = logits.logsumexp(dim=-1)
        if recording.sinks is not None:
            total = torch.logaddexp(total, recording.sinks[heads].to(total.device)[None, :, None].expand_as(total))
        found.append((_log_mass_on(logits, batch.gold) - total, _log_mass_on(logits, batch.passages) - total))
        order += heads
    back = torch.tensor(order).argsort().to(queries.device)
    gold, passages = (torch.cat(parts, dim=1)[:, back] for parts in zip(*found, strict=True))
    return gold, passages


def _log_mass_on(logits: Tensor, member: Tensor) -> Tensor:
    # Not -inf: a padded row sees no gold at all, and the gradient of logsumexp over nothing is not a number.
    return logits.masked_fill(~member[:, None, None], -1e9).logsumexp(dim=-1)


def head_losses(recording: Recording, batch: Batch, directions: Tensor, loss: LossKind) -> Tensor:
    """Loss of every head, averaged over rows, then examples.

    Returns:
        `(heads,)`.
    """
    gold, passages = log_masses(recording, batch, directions)
    value = gold.exp() if loss == "mass" else gold if loss == "log_mass" else gold - passages
    return -(value * batch.row_weight[:, None]).sum(dim=2).mean(dim=0)


@dataclass(frozen=True, slots=True)
class TrainedDirections:
    """Directions and what they did to held-out examples.

    Attributes:
        heads: `(layer, head)` pairs.
        directions: `(heads, head_dim)` float32; alpha 1 is the trained optimum.
        site: Where they enter.
        settings: How they were trained.
        before: `(heads,)` mean mass on gold of the held-out examples, bare.
        after: `(heads,)`, at alpha 1.
        history: Mean held-out loss over heads at every check.
    """

    heads: tuple[Head, ...]
    directions: Tensor
    site: Site
    settings: TrainingSettings
    before: Tensor
    after: Tensor
    history: tuple[float, ...]


def train_directions(
    recording: Recording,
    held_out: Recording,
    settings: TrainingSettings | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> TrainedDirections:
    """Train the directions of all recorded heads together.

    AdamW works on each number by itself and the losses are summed over heads, so every head trains as if it were alone.
    Each keeps the direction with its lowest held-out loss, the bare one (zero) included.

    Args:
        recording: Training examples.
        held_out: Other examples of the same heads and site.
        settings: Loss, steps and seed.
        device: Where to train.
        progress: Called with the number of epochs done.

    Raises:
        InvalidInputError: No examples on either side.
    """
    settings = settings or TrainingSettings()
    if not recording.examples or not held_out.examples:
        raise InvalidInputError(
            "Training directions needs recorded examples to train on and others to stop by; got none on one side."
        )
    generator = torch.Generator().manual_seed(settings.seed)
    directions = torch.zeros(len(recording.heads), recording.head_dim, device=device, requires_grad=True)
    optimiser = torch.optim.AdamW([directions], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    batches = _Batches(recording, settings.batch_examples, device, generator)
    checks = _Batches(held_out, settings.batch_examples, device, generator)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs * len(batches))
    best, best_loss = directions.detach().clone(), _mean_loss(held_out, checks, directions, settings.loss)
    history = [float(best_loss.mean())]
    for epoch in range(1, settings.epochs + 1):
        for index in torch.randperm(len(batches), generator=generator).tolist():
            optimiser.zero_grad()
            head_losses(recording, batches[index], directions, settings.loss).sum().backward()
            optimiser.step()
            schedule.step()
        if epoch % settings.check_every == 0 or epoch == settings.epochs:
            found = _mean_loss(held_out, checks, directions, settings.loss)
            better = found < best_loss
            best = torch.where(better[:, None], directions.detach(), best)
            best_loss = torch.where(better, found, best_loss)
            history.append(float(found.mean()))
        if progress is not None:
            progress(epoch)
    before, after = (-_mean_loss(held_out, checks, one, "mass").cpu() for one in (torch.zeros_like(best), best))
    return TrainedDirections(
        tuple(recording.heads), best.cpu(), recording.site, settings, before, after, tuple(history)
    )


class _Batches:
    """Batches of a recording, drawn once; kept where the recording itself fits into memory, built anew where not."""

    def __init__(self, recording: Recording, size: int, device: torch.device | str, generator: torch.Generator) -> None:
        order = torch.randperm(len(recording.examples), generator=generator).tolist()
        self._parts = [order[start : start + size] for start in range(0, len(order), size)]
        self._recording, self._device = recording, device
        self._kept: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Batch:
        if index not in self._kept:
            examples = [self._recording.examples[place] for place in self._parts[index]]
            batch = padded_batch(self._recording, examples, self._device)
            if self._recording.examples.has_spilled:
                return batch
            self._kept[index] = batch
        return self._kept[index]

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


@torch.no_grad()
def _mean_loss(recording: Recording, batches: _Batches, directions: Tensor, loss: LossKind) -> Tensor:
    total, count = torch.zeros_like(directions[:, 0]), 0
    for batch in batches:
        examples = batch.queries.shape[0]
        total, count = total + head_losses(recording, batch, directions, loss) * examples, count + examples
    return total / count


def summary(trained: TrainedDirections) -> dict[str, Any]:
    """Figures of a training for a report, in plain JSON types."""
    return {
        "site": trained.site,
        "loss": trained.settings.loss,
        "mass_before": float(trained.before.mean()),
        "mass_after": float(trained.after.mean()),
        "norm": float(trained.directions.norm(dim=1).mean()),
        "history": list(trained.history),
    }
