"""What the two capture benchmarks share: texts to retrieve, quantiles, sizes, and the delay of an event loop."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

PASSAGES = 20


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Passages of 130 random words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(5000)]
    return [" ".join(rng.choices(words, k=130)) for _ in range(count)]


def costs_of_calls(
    calls: int, one_call: Callable[[int], tuple[float, float]], size: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Processor time of many calls, in milliseconds, and what is held after a tenth, half and all of them.

    Args:
        calls: How many.
        one_call: Makes call number i; returns seconds spent on filing and on looking up.
        size: What is held now.
    """
    filing, looking, sizes = [], [], []
    for i in range(calls):
        filed, looked_up = one_call(i)
        filing.append(filed)
        looking.append(looked_up)
        if i + 1 in {calls // 10, calls // 2, calls}:
            sizes.append({"calls": i + 1, **size()})
    both = [a + b for a, b in zip(filing, looking, strict=True)]
    return {
        "passages": PASSAGES,
        "calls": calls,
        "ms": {"filing": quantiles(filing), "lookup": quantiles(looking), "call": quantiles(both)},
        "memory": sizes,
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Mean, median and 95% quantile in milliseconds."""
    ordered = sorted(1000 * value for value in seconds)
    return {
        "mean": round(statistics.fmean(ordered), 4),
        "median": round(ordered[len(ordered) // 2], 4),
        "p95": round(ordered[int(0.95 * len(ordered))], 4),
    }


def reachable_bytes(root: object) -> int:
    """Size of everything an object holds on to; classes, modules and functions are not its own."""
    seen: set[int] = set()
    waiting, total = [root], 0
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, (type, type(json), type(reachable_bytes))):
            continue
        seen.add(id(value))
        total += sys.getsizeof(value)
        waiting += gc.get_referents(value)
    return total


async def loop_lag(work: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    """Delays of a 1 ms timer of the event loop while `work` is done, and in two idle seconds before, in milliseconds."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(1000 * (time.perf_counter() - started) - 1)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(2)
    idle, lags[:] = max(lags), []
    started = time.perf_counter()
    await work()
    spent = time.perf_counter() - started
    watcher.cancel()
    return {
        "generating_s": round(spent, 2),
        "samples": len(lags),
        "longest_ms": round(max(lags), 2),
        "longest_ms_idle": round(idle, 2),
        "p99_ms": round(sorted(lags)[int(0.99 * len(lags))], 2),
    }


def write_result(result: dict[str, Any], out: Path | None) -> None:
    """JSON to a file, or to standard output, with what the machine was doing at the end."""
    conditions = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average_15_min": round(os.getloadavg()[2], 1),
    }
    text = json.dumps({"conditions": conditions, **result}, indent=2) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, encoding="utf-8")
