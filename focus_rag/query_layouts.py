"""How modules lay out queries, and how a query shift is brought into such a layout."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from focus_rag.errors import UnsupportedModelError

QueryFormat = Literal["flat", "tokens_heads", "heads_tokens", "fused_flat", "fused_interleaved"]
"""How a module lays out queries: `(batch, tokens, query_heads * head_dim)`, `(batch, tokens, query_heads, head_dim)`,
`(batch, query_heads, tokens, head_dim)`, queries first in a fused projection, or `(query_heads, 3, head_dim)` fused."""


def laid_out(shift: Tensor, query_format: QueryFormat, width: int) -> Tensor:
    """Bring a query shift into the layout of a module's output, ready to be added.

    Args:
        shift: `(requests, query_heads, head_dim)`, before RoPE.
        query_format: Layout of the module's output.
        width: Size of the module's last axis, which for fused projections also holds keys and values.

    Returns:
        A tensor that broadcasts against the module's output.
    """
    requests, heads, head_dim = shift.shape
    if query_format == "flat":
        return shift.reshape(requests, 1, heads * head_dim)
    if query_format == "tokens_heads":
        return shift[:, None]
    if query_format == "heads_tokens":
        return shift[:, :, None]
    if query_format == "fused_flat":
        whole = shift.new_zeros(requests, 1, width)
        whole[..., : heads * head_dim] = shift.reshape(requests, 1, heads * head_dim)
        return whole
    interleaved = shift.new_zeros(requests, 1, heads, 3, head_dim)
    interleaved[:, :, :, 0] = shift[:, None]
    return interleaved.reshape(requests, 1, width)


def as_heads(output: object, query_format: QueryFormat, heads: int, head_dim: int) -> Tensor:
    """Read the queries out of a module's output.

    Returns:
        `(batch, query_heads, tokens, head_dim)`, before RoPE.

    Raises:
        UnsupportedModelError: The output is not laid out so.
    """
    try:
        if isinstance(output, Tensor):
            found = _reordered(output, query_format, heads, head_dim)
            if found.shape[1] == heads and found.shape[-1] == head_dim:
                return found
    except (RuntimeError, IndexError, ValueError):  # heads of that number and size do not fit into it
        pass
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UnsupportedModelError(
        f"A module was expected to put out the queries of {heads} heads of {head_dim} numbers ({query_format}); got "
        f"{shape}. Use site 'post_rope', which works over every attention implementation."
    )


def _reordered(output: Tensor, query_format: QueryFormat, heads: int, head_dim: int) -> Tensor:
    if query_format == "heads_tokens":
        return output
    if query_format == "tokens_heads":
        return output.transpose(1, 2)
    batch, tokens = output.shape[:2]
    if query_format == "fused_interleaved":
        return output.view(batch, tokens, heads, 3, head_dim)[:, :, :, 0].transpose(1, 2)
    return output[..., : heads * head_dim].reshape(batch, tokens, heads, head_dim).transpose(1, 2)
