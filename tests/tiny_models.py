"""Tiny random models built in code: grouped keys, two or three layers, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from focus_rag.fingerprint import Fingerprint
from focus_rag.profile import FocusProfile, HeadEntry

VOCABULARY = 96
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {"head_dim": 8, "sliding_window": None}, "qwen2": {}, "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16}, "gemma2": {"head_dim": 16, "sliding_window": 8}, "gemma3_text": {"head_dim": 16, "sliding_window": 8},
    "phi3": {}, "olmo2": {}, "smollm3": {"no_rope_layers": [1, 0, 1]}, "gpt_neox": {"num_key_value_heads": None},
    "granite": {}, "cohere": {"use_qk_norm": True}, "cohere2": {"sliding_window": 8}, "glm": {"head_dim": 16}, "glm4": {"head_dim": 16}, "starcoder2": {},
    "stablelm": {"qk_layernorm": True}, "phi": {"num_key_value_heads": 4, "qk_layernorm": True},
    "olmo": {}, "olmo3": {"sliding_window": 8}, "ministral": {"head_dim": 8, "sliding_window": 8},
    "mixtral": {"num_local_experts": 2, "sliding_window": None},
    "qwen2_moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
}  # fmt: skip
PECULIAR_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_oss": {"head_dim": 8, "sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 1,
                "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}},
    "llama4_text": {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 64, "no_rope_layers": [1, 1, 0]},
}  # fmt: skip
"""Attention sinks and no sdpa; a query norm after RoPE."""
REFUSE_SDPA = frozenset({"gemma2", "gpt_oss"})
"""Families that transformers runs eager only."""


def tiny_model(family: str = "llama", *, attention: str = "sdpa", seed: int = 0, **overrides: Any) -> Any:
    """A random model of a family, in evaluation mode, float32."""
    settings = {**COMMON, **FAMILIES.get(family, PECULIAR_FAMILIES.get(family, {})), **overrides}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family, **{name: value for name, value in settings.items() if value is not None or name == "sliding_window"}
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The usual initialisation is so small that heads attend evenly and no shift would show.
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3 if "embed" not in name else 1.0)
            elif "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tiny_profile(model: Any, *, site: str = "normed", heads: int = 4, size: float = 2.0, seed: int = 1) -> FocusProfile:
    """A profile with random directions on the first heads of a shuffled list of all heads."""
    fingerprint = Fingerprint.of(model)
    generator = torch.Generator().manual_seed(seed)
    every = [(layer, head) for layer in range(fingerprint.layers) for head in range(fingerprint.query_heads)]
    chosen = [every[i] for i in torch.randperm(len(every), generator=generator)[:heads].tolist()]
    return FocusProfile(
        fingerprint,
        [HeadEntry(layer=layer, head=head, score=0.5) for layer, head in chosen],
        size * torch.randn(heads, fingerprint.head_dim, generator=generator),
        site=site,  # type: ignore[arg-type]
    )
