"""Attention for the training: plain matrix products, a block of rows at a time, where sequences are not long.

On a CPU in bfloat16, forward and backward take half the fused kernel's time at 226 tokens (28 against 60 ms for 18 rows
of 4 heads, one thread), two thirds at 500 to 900 (62 and 69 against 96 and 98 ms) and nine tenths at 1,800.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_NAME = "focus_rag_short"
_LONGEST = 1536
_BLOCK = 320  # rows whose weights exist at once; a block sees only the keys up to its own end


@lru_cache(maxsize=1)
def register_attention() -> str:
    """Make the attention known to transformers; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    return _NAME


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention over whole sequences.

    Args:
        module: The attention module, for its number of query heads per key head.
        query: After RoPE, `(batch, query_heads, rows, head_dim)`.
        key: After RoPE, `(batch, key_heads, keys, head_dim)`.
        value: `(batch, key_heads, keys, head_dim)`.
        attention_mask: None where plain causality is all there is.
        scaling: Factor of the logits; 1/sqrt(head_dim) if left out.
        **kwargs: What transformers passes on to the fused kernel.

    Returns:
        Output `(batch, rows, query_heads, head_dim)`, and None in place of weights.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows = query.shape[2]
    groups: int = module.num_key_value_groups  # type: ignore[assignment]
    # The device first: on a GPU no size is looked at, and a compiled layer need not be compiled again for another one.
    if query.device.type != "cpu" and attention_mask is None and rows == key.shape[2]:
        # As many key heads as query heads, in one dtype: what the flash kernel is certain to take.
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        dtype = value.dtype
        fused = torch.nn.functional.scaled_dot_product_attention(
            query.to(dtype), key.to(dtype), value, is_causal=True, scale=scaling
        )
        return fused.transpose(1, 2).contiguous(), None
    if query.device.type != "cpu" or attention_mask is not None or rows != key.shape[2] or rows > _LONGEST:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    blocks = []
    for start in range(0, rows, _BLOCK):
        end = min(start + _BLOCK, rows)
        logits = torch.matmul(query[:, :, start:end], key[:, :, :end].transpose(-1, -2))
        future = torch.full((end - start, end), float("-inf"), dtype=query.dtype).triu(start + 1)
        blocks.append(torch.matmul(torch.softmax(logits + future, dim=-1), value[:, :, :end]))
    output = torch.cat(blocks, dim=2)
    return output.transpose(1, 2).contiguous(), None
