"""What an intervention costs: focused over bare, interleaved, for prefill, decode, attaching and peak memory.

Every round runs all variants once, in random order, with the bare model before and after each of them; a ratio is a
variant over the mean of its two neighbours, so that drift of the machine cancels, and the median over rounds is
reported with its quartiles. `bare_again` is the bare model in a variant's place: its spread is the noise the other
ratios must be read against.

    python -m benchmarks.intervention --quick
    python -m benchmarks.intervention --output benchmarks/results/intervention.json
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from focus_rag.attention.measuring import SpanMeter
from focus_rag.attention.splitting import split_softmax
from focus_rag.attention.steering import focus
from focus_rag.fingerprint import Fingerprint
from focus_rag.profile import FocusProfile, HeadEntry

CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
"""What transformers calls the cache of a forward pass."""
LAYERS, WIDTH, HEADS, KEY_HEADS, STEERED_HEADS = 12, 512, 8, 4, 20
VARIANTS = ("bare_again", "post_rope", "normed", "projection", "split_softmax", "leaning", "answering")
CASES = {"quick": [(1, 256), (4, 64)], "default": [(1, 1024), (8, 1024), (1, 4096)], "full": [(8, 4096)]}
PREFILL_SECONDS, DECODE_STEPS = 200.0, 30


def model_and_heads(site: str = "normed") -> tuple[LlamaForCausalLM, FocusProfile]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, max_position_embeddings=8192,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    every = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    chosen = [every[index] for index in torch.randperm(len(every))[:STEERED_HEADS].tolist()]
    entries = [HeadEntry(layer=layer, head=head) for layer, head in chosen]
    directions = torch.randn(len(entries), WIDTH // HEADS)
    return model, FocusProfile(Fingerprint.of(model), entries, directions, site=site)


@contextlib.contextmanager
def variant(name: str, model: LlamaForCausalLM, profile: FocusProfile, batch: int, length: int) -> Iterator[None]:
    """One passage of 128 tokens in the middle is the relevant one for split softmax, which acts in every row after it,
    and the best scored one for leaning, which acts in the last 48 rows of the prompt and while answering; alpha and, at
    `post_rope`, the turn differ from row to row. `answering` is what a generator does by default: it leans and measures
    which of 20 passages the heads attend to.
    """
    if name.startswith("bare"):
        yield
    elif name in ("split_softmax", "leaning", "answering"):
        start = length // 2
        spans = [[(start, min(start + 128, length - 1))]] * batch
        first_row = None if name == "split_softmax" else length - 48
        passages = [[(place * length // 20, (place + 1) * length // 20) for place in range(20)]] * batch
        measured_as_well = (
            SpanMeter(model, profile.head_pairs, passages, length) if name == "answering" else contextlib.nullcontext()
        )
        with split_softmax(model, profile.head_pairs, spans, length, tau=0.1, first_row=first_row), measured_as_well:
            yield
    else:
        alphas = [0.1 + 0.05 * row for row in range(batch)]
        passages_at = [32 + row for row in range(batch)]
        with focus(model, profile.replace(site=name, passages_at=16), alphas, passages_at=passages_at):
            yield


def timed(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def rounds(count: int) -> Iterator[list[str]]:
    """In each round every variant once, the bare model around each."""
    shuffle = random.Random(0)
    for _ in range(count):
        order = ["bare"]
        for name in shuffle.sample(VARIANTS, len(VARIANTS)):
            order += [name, "bare"]
        yield order


def measured(count: int, run: Callable[[str], tuple[float, float]]) -> dict[str, Any]:
    """Run so many rounds; the median of every variant and of its ratios to its neighbours."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("bare", *VARIANTS)}
    ratios: dict[str, list[tuple[float, ...]]] = {name: [] for name in VARIANTS}
    for order in rounds(count):
        times = [run(name) for name in order]
        for name, found in zip(order, times, strict=True):
            seconds[name].append(found)
        for place in range(1, len(order), 2):
            before, own, after = times[place - 1 : place + 2]
            ratios[order[place]].append(tuple(2 * own[i] / (before[i] + after[i]) for i in (0, 1)))
    figures: dict[str, Any] = {"rounds": count}
    for name, times in seconds.items():
        figures[name] = {
            "median_ms_wall": round(1000 * statistics.median(wall for wall, _ in times), 3),
            "median_ms_cpu": round(1000 * statistics.median(cpu for _, cpu in times), 3),
        }
    for name, pairs in ratios.items():
        for i, clock in enumerate(("wall", "cpu")):
            low, middle, high = statistics.quantiles([pair[i] for pair in pairs], n=4)
            figures[name][f"ratio_{clock}"] = round(middle, 4)
            figures[name][f"ratio_{clock}_quartiles"] = [round(low, 4), round(high, 4)]
    return figures


@torch.inference_mode()
def case(batch: int, length: int, budget: float, steps: int) -> dict[str, object]:
    model, profile = model_and_heads()
    ids = torch.randint(3, 4000, (batch, length))
    attach: dict[str, list[float]] = {name: [] for name in VARIANTS}
    once = timed(lambda: model(ids, logits_to_keep=1))[0]
    for name in VARIANTS:  # the self-check of a new model runs here, outside the figures
        with variant(name, model, profile, batch, length):
            model(ids[:, :8].contiguous())

    def prefill(name: str) -> tuple[float, float]:
        begin = time.perf_counter()
        with variant(name, model, profile, batch, length):
            if name in attach:
                attach[name].append(time.perf_counter() - begin)
            return timed(lambda: model(ids, logits_to_keep=1))

    count = max(5, min(25, int(budget / (once * 2 * len(VARIANTS)))))
    prefilled = measured(count, prefill)
    cache = model(ids, logits_to_keep=1).past_key_values
    token = ids[:, :1].contiguous()

    def step() -> None:
        model(token, **{CACHE: cache}, logits_to_keep=1)
        cache.crop(-1)

    def decode(name: str) -> tuple[float, float]:
        with variant(name, model, profile, batch, length):
            # A prefilled cache stands in for the prompt that the split softmax would have counted.
            step()
            return timed(lambda: [step() for _ in range(3)])

    return {
        "batch": batch,
        "prompt": length,
        "prefill": prefilled,
        "decode_3_tokens": measured(steps, decode),
        "attach_ms": {name: round(1000 * statistics.median(times), 3) for name, times in attach.items()},
    }


def peak_memory(length: int, repetitions: int) -> dict[str, object]:
    """Median peak resident memory of processes that load the model, prefill and decode 8 tokens (Linux)."""
    every = ("bare", *VARIANTS)
    found: dict[str, list[int]] = {name: [] for name in every}
    for _ in range(repetitions):
        for name in every:
            command = [sys.executable, "-m", "benchmarks.intervention", "--memory-of", name, "--length", str(length)]
            found[name].append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    bare = statistics.median(found["bare"])
    return {
        "prompt": length,
        "kilobytes": {name: statistics.median(sizes) for name, sizes in found.items()},
        "ratio": {name: round(statistics.median(sizes) / bare, 4) for name, sizes in found.items()},
    }


@torch.inference_mode()
def one_process(name: str, length: int) -> int:
    model, profile = model_and_heads()
    ids = torch.randint(3, 4000, (1, length))
    with variant(name, model, profile, 1, length):
        cache = model(ids, logits_to_keep=1).past_key_values
        for _ in range(8):
            model(ids[:, :1].contiguous(), **{CACHE: cache}, logits_to_keep=1)
    # A new program's own high-water mark; ru_maxrss would start from what its parent had used.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small prompts, a few minutes")
    parser.add_argument(
        "--full", action="store_true", help="batch 8 with prompts of 4096 too: half an hour on two cores"
    )
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--conditions", default="", help="a remark on the machine's other load, kept in the result")
    parser.add_argument("--memory-of", choices=("bare", *VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, default=1024, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(one_process(options.memory_of, options.length))
        return
    cases = CASES["quick"] if options.quick else CASES["default"] + (CASES["full"] if options.full else [])
    budget, steps = (6.0, 12) if options.quick else (PREFILL_SECONDS, DECODE_STEPS)
    result = {
        "model": f"llama, random, {LAYERS} layers, width {WIDTH}, {HEADS} heads, {KEY_HEADS} key heads, float32, sdpa",
        "steered_heads": STEERED_HEADS,
        "threads": options.threads,
        "machine": {"processors": os.cpu_count(), "architecture": platform.machine()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "conditions": options.conditions,
        "load_average_at_start": os.getloadavg()[0],
        "cases": [],
    }
    for batch, length in cases:
        result["cases"].append(case(batch, length, budget, steps))
        written(result, options.output)
        print(f"batch {batch}, prompt {length}: done", file=sys.stderr)
    result["peak_memory"] = peak_memory(*((256, 1) if options.quick else (4096, 3)))
    print(written(result, options.output), end="")


def written(result: dict[str, object], output: Path | None) -> str:
    text = json.dumps(result, indent=2) + "\n"
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    main()
