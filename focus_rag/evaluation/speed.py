"""How fast a method answers, one question at a time."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from focus_rag.attention_math import AttentionCall
from focus_rag.attention_tap import AttentionTap
from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Engine
from focus_rag.evaluation.methods.method import Method
from focus_rag.model_layout import ModelLayout


class PassClock(AttentionTap):
    """Notes when forward passes reach the last layer, and with how many tokens."""

    def __init__(self, model: Any) -> None:
        last = ModelLayout.of(model).layers[-1]
        super().__init__({last.attention: last.index})
        self.passes: list[tuple[float, int]] = []

    def observe(self, layer: int, call: AttentionCall) -> None:
        self.passes.append((time.perf_counter(), call.query.shape[2]))


def measure_speed(engine: Engine, method: Method, cases: Sequence[Case]) -> dict[str, float]:
    """Medians over the cases, after one that is not counted.

    Returns:
        `seconds` (whole answer), `first_token_seconds` (until the last prompt has run through the model: methods that rank
        or contrast first run more than one), `tokens_per_second` (after the first token; left out where no answer had a
        second one), `peak_memory_mib` (of the process so far, or of the GPU).
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    method.answer(engine, cases[:1])
    whole, first, rate = [], [], []
    for case in cases:
        start = time.perf_counter()
        with PassClock(engine.model) as clock:
            (answered,) = method.answer(engine, [case])
        whole.append(time.perf_counter() - start)
        prompts = [place for place, (_, tokens) in enumerate(clock.passes) if tokens > 1]
        last = prompts[-1] if prompts else 0
        at = clock.passes[last][0]
        first.append(at - start)
        if answered.answer_tokens > 1:
            rate.append((answered.answer_tokens - 1) / (clock.passes[-1][0] - at))
    found = {"seconds": statistics.median(whole), "first_token_seconds": statistics.median(first)}
    if rate:
        found["tokens_per_second"] = statistics.median(rate)
    return {**found, "peak_memory_mib": peak_memory_mib()}


def peak_memory_mib() -> float:
    """Peak memory so far in MiB: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
