"""One call of an attention function, and the weights that some of its heads and rows have there.

Nothing here knows transformers; everything works on the tensors an attention function receives, queries and keys
after RoPE and after any query or key normalisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_ROWS_AT_ONCE = 128  # of `row_blocks`
_FEW_ROWS = 8  # up to so many, operations cost more than the heads they are done for
_KEYS_AT_ONCE = 2**24  # numbers of the keys that are copied to be worked on together


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer's attention function was called with.

    Attributes:
        query: `(batch, query_heads, tokens, head_dim)`, after RoPE.
        key: `(batch, key_heads, keys, head_dim)`, after RoPE, cached keys included.
        value: `(batch, key_heads, keys, value_dim)`.
        mask: None (causal), boolean or additive `(batch or 1, query_heads or 1, tokens, keys)`, `(batch, filled keys)`
            padding (flash attention; keys after it are the empty tail of a static cache), or the block mask of flex
            attention.
        scaling: Factor on the logits.
        softcap: Logits are squashed to `softcap * tanh(logits / softcap)`, if given.
        window: Sliding window in tokens, if the layer has one.
        sinks: `(query_heads,)` extra logits that take part in the softmax and hold no value, if the layer has them.
        starts_first: Whether the first of several tokens sees the first key where there is no mask (sdpa, which then
            has a static cache's empty tail behind the tokens). Flash attention lines the last token up with the last
            key.
        shared: Weights of all its rows, by the heads asked for: what measures and what changes a decoding step need the
            same ones.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | BlockMask | None
    scaling: float
    softcap: float | None = None
    window: int | None = None
    sinks: Tensor | None = None
    starts_first: bool = True
    shared: dict[tuple[int, ...], list[tuple[list[int], Tensor]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def filled(self) -> int:
        """Keys that hold something: all of them, but for the empty tail of a static cache where the mask does not hide
        it.
        """
        tokens, keys = self.query.shape[2], self.key.shape[2]
        if self.mask is None:
            return tokens if self.starts_first and tokens > 1 else keys
        if isinstance(self.mask, Tensor) and self.mask.dim() == 2:
            return min(keys, self.mask.shape[1])
        return keys


def head_weights(
    call: AttentionCall, heads: Sequence[int], rows: Tensor | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Attention weights of chosen heads and rows, one group of heads that share keys at a time.

    Keys are never copied per query head, and nothing larger than `(batch, group, rows, keys)` exists at once.

    Args:
        call: The attention call.
        heads: Query heads, in any order.
        rows: `(rows,)` indices into the token axis of `call.query`; all rows, if left out.

    Yields:
        The heads of the group and their weights `(batch, len(group), rows, keys)`: probability mass in float32.
    """
    group_size = call.query.shape[1] // call.key.shape[1]
    for key_head in sorted({head // group_size for head in heads}):
        group = [head for head in heads if head // group_size == key_head]
        yield group, _group_weights(call, group, rows)


def widened_weights(
    call: AttentionCall, heads: Sequence[int], rows: Tensor | None
) -> Iterable[tuple[list[int], Tensor]]:
    """`head_weights`; but of few rows one group for each run of neighbouring key heads, with all of their query heads,
    wanted or not.
    """
    if rows is not None or call.query.shape[2] > _FEW_ROWS:
        return head_weights(call, heads, rows)
    wanted = tuple(heads)
    if wanted not in call.shared:
        call.shared[wanted] = [(group, _group_weights(call, group, None)) for group in _neighbours(call, wanted)]
    return call.shared[wanted]


def _neighbours(call: AttentionCall, heads: Sequence[int]) -> list[list[int]]:
    """All query heads of the key heads that some heads use, in runs of neighbouring key heads whose keys can be had at
    once.
    """
    group_size = call.query.shape[1] // call.key.shape[1]
    most = 1
    if call.key.dtype != torch.float32:  # keys are copied anyway, but not all of them at a time
        most = max(_KEYS_AT_ONCE // call.key[:, 0].numel(), 1)
    elif (
        call.key.shape[0] == 1
    ):  # of several sequences they do not lie next to each other, and one product would copy them first
        most = call.key.shape[1]
    runs: list[list[int]] = []
    for key_head in sorted({head // group_size for head in heads}):
        own = range(key_head * group_size, (key_head + 1) * group_size)
        if runs and runs[-1][-1] + 1 == own.start and len(runs[-1]) < most * group_size:
            runs[-1].extend(own)
        else:
            runs.append(list(own))
    return runs


def _group_weights(call: AttentionCall, group: list[int], rows: Tensor | None) -> Tensor:
    """Weights `(batch, len(group), rows, keys)` of heads that are equally many for each of a run of key heads, the key
    heads in order.
    """
    tokens, keys = call.query.shape[2], call.filled
    query = taken(call.query, rows, group, heads_at=1).float() * call.scaling
    logits = _with_keys_of(call, group, query, call.key[:, :, :keys], transposed=True)
    if call.softcap:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    visible = visible_keys(call, rows, tokens, keys)
    if visible is not None:
        logits = _apply_mask(logits, visible, group)
    if call.sinks is None:
        return logits.softmax(dim=-1)
    sink = call.sinks[group].float().view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
    return torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]


def values_of(call: AttentionCall, group: Sequence[int], weights: Tensor, first: int, end: int) -> Tensor:
    """What a group of heads gets from the keys `[first, end)`: weights `(batch, len(group), rows, end - first)` times
    their values.

    Returns:
        `(batch, len(group), rows, value_dim)` float32.
    """
    return _with_keys_of(call, group, weights, call.value[:, :, first:end])


def _with_keys_of(
    call: AttentionCall, group: Sequence[int], left: Tensor, cached: Tensor, *, transposed: bool = False
) -> Tensor:
    """`left` `(batch, len(group), rows, ...)` times the keys or values `(batch, key_heads, keys, size)` that each head
    of a group uses.
    """
    group_size = call.query.shape[1] // call.key.shape[1]
    first, last = group[0] // group_size, group[-1] // group_size
    own = cached.narrow(1, first, last + 1 - first).float().flatten(0, 1)
    batch, heads, rows, _ = left.shape
    # One product of three axes: `@` of four does the same behind several operations more, which count in decoding.
    product = torch.bmm(
        left.reshape(own.shape[0], heads * rows * batch // own.shape[0], left.shape[3]), own.mT if transposed else own
    )
    return product.view(batch, heads, rows, product.shape[-1])


def taken(tensor: Tensor, rows: Tensor | None, heads: Sequence[int], *, heads_at: int) -> Tensor:
    """Some heads and rows of `(batch, heads, tokens, size)`, or of `(batch, tokens, heads, size)` where heads stand at
    axis 2.

    Returns:
        In the order of axes given; a view where the heads are neighbours and all rows are wanted.
    """
    if _are_neighbours(heads):
        found = tensor.narrow(heads_at, heads[0], len(heads))
    else:
        found = tensor.index_select(heads_at, torch.tensor(heads, device=tensor.device))
    return found if rows is None else found.index_select(3 - heads_at, rows)


def put_back(output: Tensor, rows: Tensor | None, heads: Sequence[int], new: Tensor) -> None:
    """Write `new` `(batch, len(heads), rows, value_dim)` into `output` `(batch, tokens, query_heads, value_dim)`."""
    new = new.transpose(1, 2)
    if rows is None and _are_neighbours(heads):
        output.narrow(2, heads[0], len(heads)).copy_(new)
        return
    rows = torch.arange(output.shape[1], device=output.device) if rows is None else rows
    output[:, rows[:, None], torch.tensor(heads, device=output.device)[None, :]] = new.to(output.dtype)


def _are_neighbours(heads: Sequence[int]) -> bool:
    return list(heads) == list(range(heads[0], heads[0] + len(heads)))


def visible_keys(call: AttentionCall, rows: Tensor | None, tokens: int, keys: int) -> Tensor | None:
    """Where a row may look: boolean (True is visible) or additive, `(batch or 1, heads or 1, rows, keys)`; None is
    everywhere.
    """
    mask = call.mask
    if isinstance(mask, Tensor) and mask.dim() == 4:
        return mask[..., :keys] if rows is None else mask[:, :, rows, :keys]
    if mask is None and tokens == 1 and call.window is None:
        return None
    if rows is None:
        rows = torch.arange(tokens, device=call.query.device)
    if mask is not None and not isinstance(mask, Tensor):
        return _block_mask_rows(mask, call, rows, keys)
    row = rows[:, None] + (keys - tokens)
    key = torch.arange(keys, device=call.key.device)[None, :]
    visible = key <= row
    if call.window is not None:
        visible = visible & (key > row - call.window)
    visible = visible[None, None]
    return visible if mask is None else visible & mask[:, None, None, :keys].bool()


def _block_mask_rows(mask: BlockMask, call: AttentionCall, rows: Tensor, keys: int) -> Tensor:
    """Rows of flex attention's mask, boolean `(batch, 1, rows, keys)`: asked of its function, never of all rows at
    once.
    """
    batch = torch.arange(call.query.shape[0], device=call.query.device)[:, None, None]
    key = torch.arange(keys, device=call.query.device)[None, None, :]
    visible = mask.mask_mod(batch, torch.zeros_like(batch), rows[None, :, None], key)
    return visible.expand(call.query.shape[0], len(rows), keys)[:, None]


def with_bias(call: AttentionCall, bias: Tensor) -> AttentionCall:
    """The call with a bias on its logits, `(batch or 1, query_heads or 1, tokens, keys)`, as part of its mask."""
    tokens, keys, hidden = call.query.shape[2], call.filled, torch.finfo(torch.float32).min
    visible = visible_keys(call, None, tokens, keys)
    mask = bias[..., :keys].float()
    if visible is not None:
        mask = mask.masked_fill(~visible, hidden) if visible.dtype == torch.bool else mask + visible.float()
    return replace(call, mask=pad(mask, (0, call.key.shape[2] - keys), value=hidden), window=None)


def last_position(call: AttentionCall) -> int:
    """Position among the keys of the last query, told from the mask where the cache may have an empty tail."""
    tokens, keys = call.query.shape[2], call.filled
    if call.mask is None or (isinstance(call.mask, Tensor) and call.mask.dim() == 2):
        return keys - 1
    last_row = torch.tensor([tokens - 1], device=call.query.device)
    visible = visible_keys(call, last_row, tokens, keys)
    if visible is None:
        return keys - 1
    if visible.dtype != torch.bool:
        visible = visible > torch.finfo(visible.dtype).min / 2
    seen = visible.flatten(0, 2).any(dim=0).nonzero()
    return int(seen[-1]) if len(seen) else keys - 1


def _apply_mask(logits: Tensor, visible: Tensor, group: list[int]) -> Tensor:
    if visible.shape[1] > 1:
        visible = visible[:, group]
    if visible.dtype == torch.bool:
        return logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
    return logits + visible.float()


def row_blocks(
    call: AttentionCall, output: Tensor, first: int
) -> Iterator[tuple[AttentionCall, Tensor, Tensor | None, int]]:
    """The rows of a call from `first` on, a block at a time: bounds the weights that exist at once to `(batch, group,
    128, keys)`.

    Args:
        call: The attention call.
        output: `(batch, tokens, query_heads, value_dim)` of the kernel.
        first: First row.

    Yields:
        The block's call (`rows_alone`), the part of `output` that belongs to it, which of their rows the block has,
        `(rows,)` or None for all of them, and the row of the whole call that the block begins with.
    """
    tokens = call.query.shape[2]
    for start in range(first, tokens, _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, tokens)
        part = rows_alone(call, start, end)
        if part.query.shape[2] == end - start:
            yield part, output[:, start:end], None, start
        else:
            yield part, output, torch.arange(start, end, device=output.device), start


def rows_alone(call: AttentionCall, start: int, end: int) -> AttentionCall:
    """The call as its rows `[start, end)` make it, without the keys that come after them: half of a prompt's work.

    Models are causal, so none of these rows sees those keys. Where it is not known which keys they are (a static
    cache's, flex attention's), they stay.
    """
    tokens, keys, mask = call.query.shape[2], call.filled, call.mask
    if end - start == tokens or (mask is not None and not isinstance(mask, Tensor)):
        return call
    last = call.key.shape[2]
    if mask is None or mask.dim() == 2:
        last = keys - tokens + end
        mask = None if mask is None else mask[:, :last]
    else:
        last = end if tokens == last else last
        mask = mask[:, :, start:end, :last]
    query, key, value = call.query[:, :, start:end], call.key[:, :, :last], call.value[:, :, :last]
    return replace(call, query=query, key=key, value=value, mask=mask, starts_first=False)
