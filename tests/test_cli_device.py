"""`--device`: the model goes there, or one line says why not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from focus_rag.cli.loading import move_model
from focus_rag.errors import InvalidInputError


def test_the_model_moves_to_the_device() -> None:
    devices: list[str] = []
    generator = SimpleNamespace(model=SimpleNamespace(to=devices.append))
    move_model(generator, None)  # type: ignore[arg-type]
    assert devices == []
    move_model(generator, "cuda:1")  # type: ignore[arg-type]
    assert devices == ["cuda:1"]


@pytest.mark.parametrize("device", ["abacus", "cuda:77", "hpu", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(InvalidInputError, match=device):
        move_model(SimpleNamespace(model=torch.nn.Linear(2, 2)), device)  # type: ignore[arg-type]
