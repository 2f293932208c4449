"""How fast a method answers, one question at a time."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from focus_rag.attention.attention_call import AttentionCall
from focus_rag.attention.tap import AttentionTap
from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Engine
from focus_rag.evaluation.methods.method import Method
from focus_rag.model_layout import ModelLayout
from focus_rag.probing import input_device


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
        `seconds` (whole answer), `first_token_seconds` (until the last prompt has run through the model: methods that
        rank or contrast first run more than one), `tokens_per_second` (after the first token; left out where no answer
        had a second one), `peak_memory_mib` (see `PeakMemory`).
    """
    method.answer(engine, cases[:1])
    memory = PeakMemory(input_device(engine.model))
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
    return {**found, "peak_memory_mib": memory.mib()}


class PeakMemory:
    """Most memory in use since it was made, above what was in use then, in MiB: of the GPU the model is on, else of the
    process.

    Linux forgets a process's peak when told to; elsewhere it cannot be forgotten, and only what exceeds it is seen.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                _FORGET.write_text("5")
        self._before = _peak(device)

    def mib(self) -> float:
        return max(_peak(self._device) - self._before, 0.0)


_FORGET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def _peak(device: torch.device) -> float:
    """Peak memory in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration):
        line = next(one for one in _STATUS.read_text().splitlines() if one.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
