"""Learning at the passages: before the layers that read them, their tokens come to tell whether they answer the
question.

A focus direction is the same for every question, so it can raise attention to relevant passages only where keys know
what is relevant. The question stands before the passages, so they could; but a small reader finds answers by matching
from the answer's side alone, and nothing makes its keys know more. Two things change that. A loss asks that one linear
reading of the residual stream, the same for all questions, pick out the told value among all passage tokens. And in
some batches the layer below goes without attention where a value has to be found, so that the layers above learn to
find it by what the passages know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from focus_rag.embedded.rows import FOUND, Row

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

_GOLD = 0.5  # weight of having the mass in the gold passage at all, beside having it on the told value


class Relevance:
    """The linear reading, its loss and its optimizer.

    Args:
        model: The reader in training.
        layer: The layer whose input is read; the one below it can be silenced.
        lr: Learning rate of the reading.
    """

    def __init__(self, model: LlamaForCausalLM, layer: int, lr: float) -> None:
        import torch

        device = model.get_input_embeddings().weight.device
        self.reading = torch.nn.Parameter(torch.zeros(model.config.hidden_size, device=device))
        self._optimizer = torch.optim.AdamW([self.reading], lr=lr, weight_decay=0.0)
        self._lr = lr
        self._layers = model.model.layers[layer - 1], model.model.layers[layer]
        self._hidden: torch.Tensor | None = None

    @contextmanager
    def watching(self, weights: torch.Tensor, silence: bool) -> Iterator[None]:
        """Keep what the next forward pass brings to the layer.

        Args:
            weights: Loss weights `(batch, sequence)` of its tokens.
            silence: Whether the attention of the layer below adds nothing where the next token is the first of a value
                to be found.
        """
        below, layer = self._layers

        def keep(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._hidden = arguments[0] if arguments else named["hidden_states"]

        def silenced(_: Any, arguments: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
            heard = weights.new_ones(weights.shape)
            heard[:, :-1][weights[:, 1:] >= FOUND] = 0.0
            return output[0] * heard.unsqueeze(-1).to(output[0].dtype), *output[1:]

        hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True)]
        if silence:
            hooks.append(below.self_attn.register_forward_hook(silenced))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, rows: list[Row]) -> tuple[torch.Tensor, list[bool]]:
        """Cross-entropy of the reading over all passage tokens, against the tokens that tell the value, in nats.

        Returns:
            The mean over the rows that have marks (0 without any), and for each of these whether the token picked first
            stands in the gold passage.
        """
        import torch

        assert self._hidden is not None
        hidden = self._hidden.float()
        self._hidden = None
        scores = torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=1e-6) @ self.reading
        losses, picked = [], []
        for row, line in zip(rows, scores, strict=True):
            if row.marks is None:
                continue
            begins, ends = row.marks.passages
            (gold, gold_end), (told, told_end) = row.marks.gold, row.marks.told
            shares = torch.log_softmax(line[begins:ends], dim=-1)
            in_gold = torch.logsumexp(shares[gold - begins : gold_end - begins], dim=-1)
            losses.append(-shares[told - begins : told_end - begins].mean() - _GOLD * in_gold)
            picked.append(gold <= int(shares.argmax()) + begins < gold_end)
        return (torch.stack(losses).mean() if losses else scores.sum() * 0.0), picked

    def step(self, factor: float) -> None:
        """One optimizer step at `factor` times the learning rate; without a gradient it leaves everything as it is."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What a later run needs to go on."""
        return {"reading": self.reading.data, "optimizer": self._optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.reading.data.copy_(state["reading"])
        self._optimizer.load_state_dict(state["optimizer"])
