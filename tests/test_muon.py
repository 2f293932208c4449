"""Muon on stacked matrices is torch's Muon."""

from __future__ import annotations

import copy

import pytest
import torch

from focus_rag.embedded.muon import StackedMuon, orthogonal


def test_steps_are_those_of_torch() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon to compare with")
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 9), (9, 6), (6, 9), (9, 6), (8, 8))]
    theirs = copy.deepcopy(ours)
    unused = torch.nn.Parameter(torch.ones(3, 3))
    mine = StackedMuon([*ours, unused], lr=0.05, weight_decay=0.1)
    torchs = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1, adjust_lr_fn="original")
    for step in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            other.grad = one.grad.clone()
        mine.step()
        torchs.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=4e-3, rtol=0)  # bfloat16, and products in another order
    assert unused.equal(torch.ones(3, 3))


def test_its_state_is_saved_and_restored() -> None:
    torch.manual_seed(0)
    first = [torch.nn.Parameter(torch.randn(4, 5))]
    second = copy.deepcopy(first)
    one, other = StackedMuon(first, lr=0.1), StackedMuon(second, lr=0.1)
    gradients = [torch.randn(4, 5) for _ in range(3)]
    for gradient in gradients[:2]:
        first[0].grad = gradient
        one.step()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    second[0].data.copy_(first[0].data)
    for matrix, optimizer in ((first[0], one), (second[0], other)):
        matrix.grad = gradients[2]
        optimizer.step()
    assert first[0].equal(second[0])


def test_the_result_is_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 16), (2, 16, 8)):
        sizes = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert ((sizes > 0.5) & (sizes < 1.35)).all()
