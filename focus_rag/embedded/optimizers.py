"""The optimizers of a training, and its full state on disk: weights in full precision and what optimizers remember."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

    from focus_rag.embedded.train import TrainSettings

STATE: Final = "state.safetensors"


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for the rest, one shared learning rate factor."""

    def __init__(self, model: LlamaForCausalLM, settings: TrainSettings) -> None:
        import torch

        from focus_rag.embedded.muon import StackedMuon

        inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
        self.parts: list[torch.optim.Optimizer] = [
            StackedMuon(inner, settings.matrix_lr, settings.weight_decay),
            torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=others[0].is_cuda),
        ]
        self._full = [settings.matrix_lr, settings.lr]

    def step(self, factor: float) -> None:
        for part, full in zip(self.parts, self._full, strict=True):
            for group in part.param_groups:
                group["lr"] = full * factor
            part.step()
            part.zero_grad(set_to_none=True)


def save_state(file: Path, model: LlamaForCausalLM, optimizers: Optimizers, said: Mapping[str, str]) -> None:
    """Write weights and optimizer states beside their place and move them there; learning rates are set at each step.

    Args:
        file: Where to.
        model: With output weights tied to its embeddings.
        optimizers: Its optimizers.
        said: What else to keep: see `state_said`.
    """
    from safetensors.torch import save_file

    tensors = {f"model.{name}": one for name, one in model.state_dict().items() if name != "lm_head.weight"}
    for i, part in enumerate(optimizers.parts):
        for number, state in part.state_dict()["state"].items():
            tensors.update({f"optimizer.{i}.{number}.{name}": one for name, one in state.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".new")
    save_file({name: one.contiguous() for name, one in tensors.items()}, unfinished, dict(said))
    unfinished.replace(file)


def state_said(file: Path) -> dict[str, str]:
    """What `save_state` was told to keep."""
    from safetensors import safe_open

    with safe_open(file, "pt") as found:
        return dict(found.metadata())


def load_state(file: Path, model: LlamaForCausalLM, optimizers: Optimizers, device: str) -> dict[str, str]:
    """Take over weights and optimizer states of `save_state`; returns what else it kept."""
    from safetensors.torch import load_file

    tensors = load_file(file, device=device)
    weights = {name.removeprefix("model."): one for name, one in tensors.items() if name.startswith("model.")}
    model.load_state_dict(weights, strict=False)
    for i, part in enumerate(optimizers.parts):
        states: dict[int, dict[str, Any]] = {}
        for name, one in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, number, key = name.split(".")
                states.setdefault(int(number), {})[key] = one
        part.load_state_dict({"state": states, "param_groups": part.state_dict()["param_groups"]})
    return state_said(file)
