"""Split softmax: give a known span the mass `p ** tau` on chosen heads (the paper's oracle intervention)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from focus_rag.attention.attention_call import AttentionCall, row_blocks
from focus_rag.attention.formulas import aligned_membership, head_exponents, rows_of, span_membership, split_output
from focus_rag.attention.measuring import KeyCounter, Spans, heads_by_layer, require_heads, tapped_layers
from focus_rag.attention.tap import AttentionTap
from focus_rag.errors import AttachError, InvalidInputError
from focus_rag.model_layout import rolling_sizes
from focus_rag.score_split import SMALLEST_TAU


class SplitSoftmaxTap(AttentionTap):
    """Changes the attention output of chosen heads, from a row on, as if softmax had been split."""

    def __init__(
        self,
        model: nn.Module,
        heads: Sequence[tuple[int, int]],
        spans: Spans,
        prompt_length: int,
        *,
        tau: float | Sequence[float],
        first_row: int | Sequence[int] | None,
    ) -> None:
        self._grouped = heads_by_layer(heads)
        super().__init__(tapped_layers(model, self._grouped))
        self._member: Tensor = span_membership(spans, prompt_length, torch.device("cpu")).amax(dim=-1, keepdim=True)
        # One of each per request: rows of a batch have their spans in different places.
        self._taus = torch.tensor([tau] * len(spans) if isinstance(tau, (int, float)) else list(tau))
        self._exponents: dict[int, Tensor] = {}
        if first_row is None:
            first_row = [max((end for _, end in of_request), default=prompt_length) for of_request in spans]
        first_rows = [first_row] * len(spans) if isinstance(first_row, int) else list(first_row)
        self._first_rows = torch.tensor(first_rows)
        self._earliest, self._latest = min(first_rows), max(first_rows)
        flat = [span for of_request in spans for span in of_request]
        self._between = min(start for start, _ in flat), max(end for _, end in flat)
        self._counter = KeyCounter(rolling_sizes(model))

    def change(self, layer: int, call: AttentionCall, output: Tensor) -> Tensor:
        seen = self._counter.update(layer, call)
        batch, tokens, keys = call.query.shape[0], call.query.shape[2], call.key.shape[2]
        before = seen - tokens
        first = max(self._earliest - before, 0)
        if first >= tokens:
            return output
        if self._member.device != output.device:
            self._member, self._first_rows = self._member.to(output.device), self._first_rows.to(output.device)
        if layer not in self._exponents:
            with torch.inference_mode(False):  # a later pass through this tap may want gradients
                self._exponents[layer] = head_exponents(self._grouped[layer], call.query.shape[1], self._taus).to(
                    output.device
                )
        member, exponents, first_rows = (
            rows_of(one, batch) for one in (self._member, self._exponents[layer], self._first_rows)
        )
        if member is None or exponents is None or first_rows is None:
            raise AttachError(
                f"A forward pass of {batch} rows met spans for {self._member.shape[0]} requests: give one list of "
                "spans per row."
            )
        in_span = aligned_membership(member, keys, seen)[..., 0]
        output = output.clone()
        gone = max(seen - keys, 0)  # positions that a rolling cache has let go of
        between = max(self._between[0] - gone, 0), max(self._between[1] - gone, 0)
        for part, own, rows, start in row_blocks(call, output, first):
            chosen = None
            if start + before < self._latest:
                end = start + (own.shape[1] if rows is None else len(rows))
                chosen = (
                    torch.arange(start + before, end + before, device=output.device)[None, :] >= first_rows[:, None]
                )
            split_output(part, own, self._grouped[layer], rows, in_span, exponents, chosen, between)
        return output


@contextmanager
def split_softmax(
    model: nn.Module,
    heads: Sequence[tuple[int, int]],
    spans: Spans,
    prompt_length: int,
    *,
    tau: float = 0.1,
    first_row: int | Sequence[int] | None = None,
) -> Iterator[None]:
    """Split the softmax of chosen heads while the context is open, where the model runs in the thread that opened it.

    Weights that a model returns by itself (`output_attentions`) are those before the split.

    Args:
        model: The model.
        heads: `(layer, head)` pairs (the paper: the top 20 contextual heads).
        spans: For every request the relevant spans `[start, end)` in positions of the left-padded prompt.
        prompt_length: Length of the padded prompt in tokens.
        tau: Exponent in [1e-6, 1]; the smaller, the more mass goes to the spans. 1 changes and attaches nothing.
        first_row: First query position to change, one for all requests or one for each; by default the first one after
            a request's spans.

    Raises:
        InvalidInputError: tau outside [1e-6, 1], no heads or such as the model has not, no spans, spans outside the
            prompt, or first rows for another number of requests.
        UnsupportedModelError: The model's layout cannot be read.
        AttachError: A forward pass has another number of rows than there are requests.
    """
    if not SMALLEST_TAU <= tau <= 1.0:
        raise InvalidInputError(f"tau must lie in [{SMALLEST_TAU:g}, 1]; got {tau!r}.")
    flat = [span for of_request in spans for span in of_request]
    if not flat or any(not 0 <= start < end <= prompt_length for start, end in flat):
        raise InvalidInputError(
            f"Split softmax needs spans within the prompt of {prompt_length} tokens; got {list(spans)!r}."
        )
    if first_row is not None and not isinstance(first_row, int) and len(first_row) != len(spans):
        raise InvalidInputError(
            f"Split softmax needs one first row, or one for each of {len(spans)} requests; got {list(first_row)!r}."
        )
    require_heads(model, heads)
    if tau == 1.0:
        yield
        return
    with SplitSoftmaxTap(model, heads, spans, prompt_length, tau=tau, first_row=first_row):
        yield
