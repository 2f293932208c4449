"""Training directions on recorded queries and keys gives what a plain autograd reference gives, and what steering does."""

from __future__ import annotations

import pytest
import torch
from planted_model import PLANTED, planted_examples, planted_model
from tiny_models import FAMILIES, tiny_model

from focus_rag.attention.recording import QueryKeyRecorder
from focus_rag.attention.steering import focus
from focus_rag.errors import InvalidInputError
from focus_rag.fingerprint import Fingerprint
from focus_rag.fitting.direction_training import TrainingSettings, head_losses, train_directions
from focus_rag.fitting.head_scoring import score_heads
from focus_rag.fitting.recorded_heads import Recording, padded_batch, record_examples
from focus_rag.fitting.teacher_forcing import run_decoder
from focus_rag.profile import FocusProfile, HeadEntry

HEADS = [(1, 0), (1, 3)]


def profile_of(
    model: torch.nn.Module, heads: list[tuple[int, int]], directions: torch.Tensor, site: str
) -> FocusProfile:
    entries = [HeadEntry(layer=layer, head=head) for layer, head in heads]
    return FocusProfile(Fingerprint.of(model), entries, directions, site=site)  # type: ignore[arg-type]


@pytest.mark.parametrize("site", ["post_rope", "normed", "projection"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_shift_in_training_is_the_shift_of_steering(family: str, site: str) -> None:
    """Queries that training computes under a direction are those that attention receives from the steered model."""
    model = tiny_model(family, attention="eager" if family == "gemma2" else "sdpa")
    example = planted_examples(1)[0]
    recording = record_examples(model, [example], HEADS, site)  # type: ignore[arg-type]
    directions = torch.randn(len(HEADS), recording.head_dim, generator=torch.Generator().manual_seed(3))
    ours = recording.shifted(padded_batch(recording, recording.examples), directions)[0]
    with (
        focus(model, profile_of(model, HEADS, directions, site), 1.0),
        QueryKeyRecorder(model, HEADS, example.rows) as seen,
    ):
        run_decoder(model, example.input_ids)
    theirs = seen.records[1].queries[[head for _, head in HEADS]]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", ["mass", "log_mass"])
def test_training_equals_a_plain_reference(loss: str) -> None:
    """Full softmax over each example by itself, one head at a time, plain autograd and the same optimiser."""
    model, examples = planted_model(), planted_examples(5)
    settings = TrainingSettings(loss=loss, epochs=12, batch_examples=8, learning_rate=0.05, check_every=12)  # type: ignore[arg-type]
    recording = record_examples(model, examples, HEADS, "post_rope")
    trained = train_directions(recording, recording, settings)
    for place, (layer, head) in enumerate(HEADS):
        direction = torch.zeros(8, requires_grad=True)
        optimiser = torch.optim.AdamW([direction], lr=0.05, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 12)
        for _ in range(12):
            total = torch.zeros(())
            for example in examples:
                with QueryKeyRecorder(model, [(layer, head)], example.rows) as seen:
                    run_decoder(model, example.input_ids)
                record = seen.records[layer]
                logits = (record.queries[head] + direction) @ record.keys[head // 2].T * 8**-0.5
                future = torch.arange(len(example.input_ids))[None] > torch.tensor(example.rows)[:, None]
                weights = logits.masked_fill(future, float("-inf")).softmax(dim=-1)
                mass = weights[:, slice(*example.gold[0])].sum(dim=-1)
                total = total - (mass if loss == "mass" else mass.log()).mean() / len(examples)
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            schedule.step()
        torch.testing.assert_close(trained.directions[place], direction.detach(), atol=1e-4, rtol=0)


def test_the_key_direction_has_no_gradient() -> None:
    """A key direction adds `q . d_k` to every logit of a row alike; softmax removes what all logits have in common.

    So whatever the published key directions hold, no loss on attention can have put it there: its gradient is zero but
    for rounding, and the query direction is the whole method.
    """
    model = planted_model()
    example = planted_examples(1)[0]
    with QueryKeyRecorder(model, [PLANTED[0]], example.rows) as seen:
        run_decoder(model, example.input_ids)
    layer, head = PLANTED[0]
    record = seen.records[layer]
    query_direction = torch.zeros(8, requires_grad=True)
    key_direction = torch.zeros(8, requires_grad=True)
    logits = (record.queries[head] + query_direction) @ (record.keys[head // 2] + key_direction).T * record.scaling
    weights = logits.masked_fill(~record.visible, float("-inf")).softmax(dim=-1)
    (-weights[:, slice(*example.gold[0])].sum(dim=-1).clamp_min(1e-9).log().mean()).backward()
    assert query_direction.grad is not None and key_direction.grad is not None
    assert float(key_direction.grad.abs().max()) < 1e-6
    assert float(query_direction.grad.abs().max()) > 1e-3


@pytest.mark.parametrize("site", ["post_rope", "normed"])
def test_trained_directions_raise_the_mass_on_gold_in_the_model(site: str) -> None:
    model = planted_model()
    heads = [(0, 0), (1, 1)]
    recording = record_examples(model, planted_examples(16, seed=1), heads, site)  # type: ignore[arg-type]
    held_out = record_examples(model, planted_examples(8, seed=2), heads, site)  # type: ignore[arg-type]
    trained = train_directions(recording, held_out, TrainingSettings(epochs=20))
    assert (trained.after > trained.before + 0.1).all()
    unseen = planted_examples(8, seed=3)
    bare = score_heads(model, unseen)
    with focus(model, profile_of(model, heads, trained.directions, site), 1.0):
        steered = score_heads(model, unseen)
    for head in heads:
        assert steered.of(head) > bare.of(head) + 0.1


def test_padding_changes_nothing() -> None:
    model, examples = planted_model(), planted_examples(5)
    recording = record_examples(model, examples, HEADS, "normed")
    directions = torch.randn(2, 8, generator=torch.Generator().manual_seed(4))
    together = head_losses(recording, padded_batch(recording, recording.examples), directions, "contrast")
    alone = [
        head_losses(recording, padded_batch(recording, [one]), directions, "contrast") for one in recording.examples
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean(dim=0), atol=1e-5, rtol=0)


def test_heads_train_as_if_alone_and_seeds_repeat() -> None:
    model, examples = planted_model(), planted_examples(6)
    settings = TrainingSettings(epochs=6, batch_examples=2)
    both = record_examples(model, examples, HEADS, "normed")
    alone = record_examples(model, examples, HEADS[1:], "normed")
    first, again = train_directions(both, both, settings), train_directions(both, both, settings)
    assert torch.equal(first.directions, again.directions)
    torch.testing.assert_close(
        first.directions[1], train_directions(alone, alone, settings).directions[0], atol=1e-5, rtol=0
    )


def test_a_direction_that_helps_nobody_stays_zero() -> None:
    """Held-out examples whose gold is what training examples avoid: every direction is worse than none."""
    model, examples = planted_model(), planted_examples(6)
    swapped = [
        type(one)(one.input_ids, one.prompt_tokens, one.rows, one.others[:1], one.gold)
        for one in planted_examples(6, seed=9)
    ]
    recording = record_examples(model, examples, PLANTED[:1], "post_rope")
    held_out = record_examples(model, swapped, PLANTED[:1], "post_rope")
    trained = train_directions(recording, held_out, TrainingSettings(epochs=4))
    assert float(trained.directions.abs().max()) == 0.0
    torch.testing.assert_close(trained.before, trained.after)


def test_nothing_recorded_is_refused() -> None:
    recording = Recording(planted_model(), HEADS, "normed")
    with pytest.raises(InvalidInputError, match="got none"):
        train_directions(recording, recording)


def test_examples_on_disk_train_like_examples_in_memory() -> None:
    model, examples = planted_model(), planted_examples(6)
    settings = TrainingSettings(epochs=3, batch_examples=4)
    trained = []
    for memory_mb in (2048, 0.001):
        recording = record_examples(model, examples, HEADS, "normed", memory_mb=memory_mb)
        assert recording.examples.has_spilled == (memory_mb < 1) and len(recording.examples) == 6
        trained.append(train_directions(recording, recording, settings).directions)
    assert torch.equal(*trained)
