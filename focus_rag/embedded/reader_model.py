"""The reader as a model: its shape, its first weights, and how its weights are saved and read again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from focus_rag.embedded.short_attention import register_attention
from focus_rag.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


class ModelShape(BaseModel):
    """Size of the reader."""

    model_config = ConfigDict(frozen=True)

    vocab_size: int = 6144
    hidden_size: int = 192
    intermediate_size: int = 512
    layers: int = 5
    heads: int = 4
    key_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 4096


def new_model(shape: ModelShape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A freshly initialised reader."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        attention_bias=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation=register_attention(),
    )
    model = LlamaForCausalLM(config)
    _start_for_copying(model)
    return model


def _start_for_copying(model: LlamaForCausalLM) -> None:
    """Initial weights from which copying is found in tens of steps rather than hundreds.

    Token identities start well above what the layers add to them, so that attending to a token is enough to predict it.
    In the first two layers, biases of queries and keys make heads look back by a distance: one, two, and some three and
    some seven tokens, for a bias vector turned by RoPE is a function of distance alone. The near ones are what copying
    needs, the wide ones gather the words of a name. It is a start, not a constraint: everything is trained.
    """
    import torch

    config = model.config
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 0.08)
        for layer in model.model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.mul_((2 * config.num_hidden_layers) ** -0.5)
        half, size = config.head_dim // 2, config.head_dim
        frequencies = float(config.rope_parameters["rope_theta"]) ** (-torch.arange(half) / half)
        heads_per_key = config.num_attention_heads // config.num_key_value_heads
        near, wide = slice(0, half // 2), slice(3 * half // 32, 9 * half // 32 + 1)
        for layer in model.model.layers[:2]:
            attention = layer.self_attn
            for group in range(config.num_key_value_heads):
                chosen, strength, distances = ((near, 5.0, (1, 2)), (wide, 2.3, (3, 7)))[group % 2]
                attention.k_proj.bias[group * size : group * size + half][chosen] = strength
                for i, distance in enumerate(distances[:heads_per_key]):
                    bias = attention.q_proj.bias[
                        (group * heads_per_key + i) * size : (group * heads_per_key + i + 1) * size
                    ]
                    # The angle between the rotated query at m and the rotated key at n is then zero where m - n is the
                    # distance.
                    angles = -distance * frequencies[chosen]
                    bias[:half][chosen] = strength * torch.cos(angles)
                    bias[half:][chosen] = strength * torch.sin(angles)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, largest_file: str = "1GB") -> None:
    """Write model (bfloat16, in files of at most `largest_file`) and tokenizer as transformers loads them."""
    import copy

    import torch

    half = copy.deepcopy(model).to(torch.bfloat16).cpu()
    half.save_pretrained(folder, max_shard_size=largest_file)
    tokenizer.save_pretrained(folder)


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model, from however many files.

    Raises:
        InvalidInputError: There are none in the folder, or they cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            found.update(load_file(file))
    except (OSError, SafetensorError) as error:
        raise InvalidInputError(f"The weights in {folder} cannot be read: {error}") from error
    if not found:
        raise InvalidInputError(
            f"{folder} holds no saved reader: give the folder of one, with .safetensors files in it."
        )
    return found


def load_weights(model: LlamaForCausalLM, folder: Path) -> None:
    """Give a model the weights of a saved one.

    Raises:
        InvalidInputError: They cannot be read, or are those of a model of another shape.
    """
    try:
        missing, unexpected = model.load_state_dict(saved_tensors(folder), strict=False)
    except RuntimeError as error:
        raise InvalidInputError(f"The weights of {folder} cannot be the start of this training: {error}") from error
    missing = [name for name in missing if name != "lm_head.weight"]  # tied to the embeddings
    if missing or unexpected:
        raise InvalidInputError(
            f"{folder} is a model of another shape: it lacks {missing} and has {unexpected} besides."
        )
