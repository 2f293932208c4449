"""What a step of direction training costs beside a step with backpropagation through the whole model, in processor
time.

    python benchmarks/direction_training.py --tokens 1024 --out direction_training.json

Both take the gradient of the same loss with respect to the same 20 directions on one example; steps alternate, and the
ratio is the median over pairs. Ours needs one recording pass per example on top, which is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from scoring import HEADS, LAYERS, WIDTH, build, build_example

from focus_rag.attention.attention_call import AttentionCall
from focus_rag.attention.formulas import span_mass
from focus_rag.attention.measuring import tapped_layers
from focus_rag.attention.tap import AttentionTap
from focus_rag.fitting.direction_training import head_losses
from focus_rag.fitting.recorded_heads import Recording, padded_batch
from focus_rag.fitting.teacher_forcing import TeacherForced


class FullBackpropagation(AttentionTap):
    """Shifts queries by directions that require a gradient and gathers the loss on the way through the model."""

    def __init__(
        self, model: Any, heads: list[tuple[int, int]], directions: torch.Tensor, example: TeacherForced
    ) -> None:
        super().__init__(tapped_layers(model, {layer for layer, _ in heads}))
        self._heads, self._directions, self._example = heads, directions, example
        self.losses: list[torch.Tensor] = []

    def shift(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        whole = torch.zeros(query.shape[1], query.shape[-1])
        for place, (of_layer, head) in enumerate(self._heads):
            if of_layer == layer:
                row = torch.zeros(query.shape[1], 1)
                row[head] = 1.0
                whole = whole + row * self._directions[place]
        return query + whole[None, :, None]

    def observe(self, layer: int, call: AttentionCall) -> None:
        member = torch.zeros(1, call.key.shape[2], 1)
        for start, end in self._example.gold:
            member[0, start:end] = 1.0
        chosen = [head for of_layer, head in self._heads if of_layer == layer]
        mass = span_mass(call, chosen, torch.tensor(self._example.rows), member)
        self.losses.append(-mass.clamp_min(1e-9).log().mean(dim=(0, 2, 3)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("direction_training.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, example = build(options.tokens, "sdpa").requires_grad_(False), build_example(options.tokens)
    heads = [(layer, head) for layer in range(4, 8) for head in range(5)]
    ids = torch.tensor([example.input_ids])
    start = time.process_time()
    recording = Recording(model, heads, "post_rope")
    recording.add(example)
    recorded = time.process_time() - start
    batch = padded_batch(recording, recording.examples)
    directions = torch.zeros(len(heads), recording.head_dim, requires_grad=True)

    def ours() -> torch.Tensor:
        head_losses(recording, batch, directions, "log_mass").sum().backward()
        return _gradient(directions)

    def full() -> torch.Tensor:
        with FullBackpropagation(model, heads, directions, example) as tap:
            model(input_ids=ids, use_cache=False)
        torch.stack(tap.losses).sum().backward()
        return _gradient(directions)

    first, second = ours(), full()
    last_layer = [place for place, (layer, _) in enumerate(heads) if layer == heads[-1][0]]
    seconds: dict[str, list[float]] = {"ours": [], "full": []}
    for _ in range(options.repeats):
        for name, step in (("ours", ours), ("full", full)):
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    ratios = [one / other for one, other in zip(seconds["ours"], seconds["full"], strict=True)]
    found = {
        "tokens": options.tokens, "heads": len(heads), "layers": LAYERS, "width": WIDTH, "heads_per_layer": HEADS, "rows": len(example.rows),
        "cpu_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "recording_cpu_seconds": recorded,
        "ratio": {"median": statistics.median(ratios), "all": ratios},
        "gradient_difference_deepest_layer": float((first - second)[last_layer].norm() / second[last_layer].norm()),
        "gradient_cosine": float(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)),
        "torch": torch.__version__, "threads": 1,
    }  # fmt: skip
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def _gradient(directions: torch.Tensor) -> torch.Tensor:
    assert directions.grad is not None
    found, directions.grad = directions.grad, None
    return found


if __name__ == "__main__":
    main()
