"""Focus directions at one alpha as a bias of the query projections, in a model that shares the original's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from focus_rag.attention.steering import layer_directions
from focus_rag.errors import InvalidInputError, UnsupportedModelError
from focus_rag.fingerprint import BAKED
from focus_rag.model_layout import ModelLayout
from focus_rag.profile import FocusProfile
from focus_rag.query_layouts import laid_out


def baked_model(model: Any, config: Any, profile: FocusProfile, alpha: float) -> Any:
    """The same model built anew from a configuration with query biases, sharing the weights of the original.

    Args:
        model: The original.
        config: Its configuration with query biases switched on; the name of what is baked is written into it.
        profile: A profile whose directions enter at the output of the query projection.
        alpha: Intervention factor.

    Raises:
        UnsupportedModelError: The model cannot be built from its configuration, or differs then in more than biases.
        InvalidInputError: The shift is too large for the dtype, or the model was cast after it was loaded.
    """
    from transformers import AutoModelForCausalLM

    for part in (config, config.get_text_config()):  # of a multimodal model the language part can be used alone
        setattr(part, BAKED, f"alpha {alpha:g}, profile {profile.digest}")

    how = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation, "trust_remote_code": False}
    try:
        with torch.device("meta"):
            baked = AutoModelForCausalLM.from_config(config, **how)
    except ValueError as error:
        raise UnsupportedModelError(
            f"transformers cannot build {type(model).__name__} from its configuration alone: {error}"
        ) from error
    baked.load_state_dict(_tensors(model, baked, profile, alpha), assign=True)
    baked.tie_weights()
    _share_buffers(model, baked)
    return baked.eval()


def _tensors(model: nn.Module, baked: nn.Module, profile: FocusProfile, alpha: float) -> dict[str, Tensor]:
    """The model's weights, the shift added to its query biases; biases that came with them are zero.

    Raises:
        UnsupportedModelError: The two models differ in more than biases inside the attention.
        InvalidInputError: The shift is too large for the dtype.
    """
    layout = ModelLayout.of(baked)
    names = {module: name for name, module in baked.named_modules()}
    biases = {f"{names[module]}.bias" for layer in layout.layers for module in layer.attention.children()}
    tensors, wanted = dict(model.state_dict()), baked.state_dict()
    new = wanted.keys() - tensors.keys()
    wrong = (new - biases) | {
        name for name, one in tensors.items() if name not in wanted or wanted[name].shape != one.shape
    }
    if wrong:
        raise UnsupportedModelError(
            f"{type(baked).__name__}, built with biases in its attention, differs from this {type(model).__name__} "
            f"in more than those: {', '.join(sorted(wrong)[:4])}."
        )
    for name in new:
        weight = tensors[name.removesuffix("bias") + "weight"]
        tensors[name] = weight.new_zeros(wanted[name].shape)
    for index, directions in layer_directions(profile, profile.directions).items():
        queries = layout.layers[index].projection
        if queries is None:  # pragma: no cover - such models have been refused
            continue
        name = f"{names[queries.module]}.bias"
        bias = tensors[name]
        shift = laid_out(alpha * directions[None], queries.format, bias.numel()).flatten()
        tensors[name] = (bias + shift.to(bias.device)).to(bias.dtype)
        if not tensors[name].isfinite().all():
            raise InvalidInputError(f"alpha {alpha:g} makes shifts that {bias.dtype} cannot hold. Give a smaller one.")
    return tensors


def _share_buffers(model: nn.Module, baked: nn.Module) -> None:
    """Take over what no checkpoint holds and a model built without memory lacks: frequencies of RoPE, scales of
    embeddings.
    """
    originals = dict(model.named_buffers(remove_duplicate=False))
    for name, buffer in list(baked.named_buffers()):
        if not buffer.is_meta:
            continue
        original = originals.get(name)
        if original is None:
            raise UnsupportedModelError(
                f"{type(baked).__name__} has a buffer {name!r} that {type(model).__name__} lacks; it cannot be "
                "exported."
            )
        if original.dtype != buffer.dtype:
            # What is written would compute it in full, and answer otherwise than this model.
            raise InvalidInputError(
                f"The model was cast after it was loaded, and its {name!r} was rounded to {original.dtype} with it. "
                "Load it with from_pretrained(..., dtype=...)."
            )
        home, _, own = name.rpartition(".")
        baked.get_submodule(home).register_buffer(own, original, persistent=False)
