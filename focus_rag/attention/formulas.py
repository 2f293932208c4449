"""The formulas of focusing: membership in spans, attention mass on them, and split softmax.

Pure tensor mathematics on the weights of an `AttentionCall`; nothing here knows transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import threshold

from focus_rag.attention.attention_call import AttentionCall, put_back, taken, values_of, widened_weights

_SMALLEST = torch.finfo(torch.float32).tiny  # mass that a span can have
_BELOW_ONE = 1 - torch.finfo(torch.float32).eps / 2


def rows_of(per_request: Tensor, batch: int) -> Tensor | None:
    """Spread a tensor with one row per request over the rows of a forward pass.

    Beam search, several return sequences and the like repeat every request's row in place.

    Args:
        per_request: `(requests, ...)`; one request serves any batch.
        batch: Rows in this forward pass.

    Returns:
        `(batch, ...)` or `(1, ...)`, or None where the rows cannot be told apart.
    """
    requests = per_request.shape[0]
    if requests in (1, batch):
        return per_request
    if batch % requests:
        return None
    return per_request.repeat_interleave(batch // requests, dim=0)


def span_membership(spans: Sequence[Sequence[tuple[int, int]]], length: int, device: torch.device) -> Tensor:
    """Indicator of token spans.

    Args:
        spans: For every request its spans `[start, end)` in (padded) token positions; requests may have different
            counts.
        length: Number of positions covered.
        device: Where the result lives.

    Returns:
        `(requests, length, most spans of a request)` float32, 1 where the position belongs to the span.
    """
    most = max((len(of_request) for of_request in spans), default=0)
    member = torch.zeros(len(spans), length, most, device=device)
    for request, of_request in enumerate(spans):
        for index, (start, end) in enumerate(of_request):
            member[request, start:end, index] = 1.0
    return member


def aligned_membership(member: Tensor, keys: int, seen: int) -> Tensor:
    """Cut a membership over prompt positions to the keys of one attention call.

    Args:
        member: `(requests, prompt positions, spans)`.
        keys: Keys in the call.
        seen: Positions seen so far, this call's included. A rolling cache holds only the last `keys` of them.

    Returns:
        `(requests, first keys, spans)`: the keys behind those are none of the prompt's.
    """
    first = max(seen - keys, 0)
    return member[:, first : first + keys]


def span_mass(call: AttentionCall, heads: Sequence[int], rows: Tensor | None, member: Tensor) -> Tensor:
    """Attention mass that chosen heads and rows put on each span (the paper's contextual scoring, per row).

    Args:
        call: The attention call.
        heads: Query heads.
        rows: `(rows,)` indices into the token axis; None are all of them.
        member: `(batch or 1, first keys, spans)` indicator; keys behind are in no span.

    Returns:
        `(batch, len(heads), rows, spans)` probability mass in float32, heads in the order given.
    """
    parts: dict[int, Tensor] = {}
    for group, weights in widened_weights(call, heads, rows):
        known = min(weights.shape[-1], member.shape[1])
        flat = weights[..., :known].flatten(1, 2)
        mass = (flat @ member[:, :known]).view(*weights.shape[:3], -1)
        if group == list(heads):
            return mass
        parts.update({head: mass[:, index] for index, head in enumerate(group)})
    return torch.stack([parts[head] for head in heads], dim=1)


def split_weights(weights: Tensor, in_span: Tensor, tau: float) -> Tensor:
    """Split softmax written out on attention weights: the span gets mass `p ** tau` (the paper's oracle form).

    Args:
        weights: `(..., keys)` probability mass; or masses on several spans in the place of keys, which need not add up
            to 1.
        in_span: `(..., keys)` boolean, broadcastable.
        tau: Exponent in (0, 1]; 1 changes nothing.

    Returns:
        Weights of the same shape. Rows with no mass on the span, or all of it, are unchanged.
    """
    mass = (weights * in_span).sum(dim=-1, keepdim=True)
    raised = mass.clamp_min(torch.finfo(weights.dtype).tiny) ** tau
    inside = raised / mass
    outside = (1 - raised) / (1 - mass)
    split = torch.where(in_span, weights * inside, weights * outside)
    # Below the smallest normal number p**tau / p overflows; such a span has no mass to speak of.
    return torch.where((mass >= torch.finfo(mass.dtype).tiny) & (mass < 1), split, weights)


def head_exponents(heads: Sequence[int], query_heads: int, taus: Tensor) -> Tensor:
    """Exponents of all query heads for `split_output`: those of the requests on chosen heads, 1 on the others.

    Args:
        heads: Query heads to split.
        query_heads: How many the layer has.
        taus: `(requests,)`.

    Returns:
        `(requests, query_heads, 1, 1)` float32.
    """
    exponents = torch.ones(len(taus), query_heads, 1, 1)
    exponents[:, list(heads), 0, 0] = taus[:, None].float()
    return exponents


def split_output(
    call: AttentionCall,
    output: Tensor,
    heads: Sequence[int],
    rows: Tensor | None,
    in_span: Tensor,
    exponents: Tensor,
    chosen: Tensor | None = None,
    span_range: tuple[int, int] | None = None,
) -> Tensor:
    """Turn a kernel's output into the output under split softmax, without recomputing the rest of the attention.

    With p the span's mass and O_S what the span alone would put out (its part of the output over p), the output O moves
    towards O_S by `(p**tau - p) / (1 - p)`: the masses p and 1 - p become `p**tau` and `1 - p**tau`. An exponent of 1
    leaves a head as it was, in float32 and below to the bit.

    Args:
        call: The attention call.
        output: `(batch, tokens, query_heads, value_dim)` of the kernel; changed in place for the chosen heads and rows.
        heads: Query heads to split; others may be worked on with them, and are kept as they are by their exponent.
        rows: `(rows,)` indices into the token axis; None are all of them.
        in_span: `(batch or 1, first keys)` indicator; keys behind are not in the span.
        exponents: `(batch or 1, query_heads, 1, 1)` in (0, 1], 1 for all heads but those to split, see
            `head_exponents`.
        chosen: `(batch or 1, rows)` boolean: which of the rows are split in which sequence of the batch; all, if left
            out.
        span_range: Keys `[first, last)` outside of which no row of the batch has a span; all, if left out.

    Returns:
        `output`.
    """
    first, last = span_range or (0, call.key.shape[2])
    last = min(last, in_span.shape[-1])
    for group, weights in widened_weights(call, heads, rows):
        end = max(min(last, weights.shape[-1]), first)
        of_span = weights[..., first:end] * in_span[:, None, None, first:end]
        mass = of_span.sum(dim=-1, keepdim=True)
        from_span = values_of(call, group, of_span, first, end)
        tau = taken(exponents, None, group, heads_at=1)
        if chosen is not None:
            tau = torch.where(chosen[:, None, :, None], tau, 1.0)
        # A sum in float32 may pass 1 by a rounding; of less than the smallest number there is no mass to speak of.
        mass = threshold(mass.clamp_max(_BELOW_ONE), _SMALLEST, 0.0)
        divisor = mass.clamp_min(_SMALLEST)
        before = taken(output, rows, group, heads_at=2).transpose(1, 2).float()
        if torch.is_grad_enabled():
            raised = torch.where(mass == 0, mass, divisor**tau)  # the slope of p**tau at 0 is infinite
            before = before.clone()  # it may be a view of what is written to, and is needed for the gradient
        else:
            raised = mass**tau
        step = (raised - mass) / torch.rsub(mass, 1)  # faster than `1 - mass`, which goes through Python
        put_back(output, rows, group, torch.lerp(before, from_span / divisor, step))
    return output
