"""What an intervention costs: focused over bare, interleaved, for prefill, decode, attaching and peak memory.

Every round runs all variants once, in an order that turns and flips from round to round, so that drift of the machine
meets all of them alike; a ratio is taken within a round and the median over rounds is reported. `bare_again` is the bare
model a second time: its spread is the noise the other ratios must be read against.

    python -m benchmarks.intervention --quick
    python -m benchmarks.intervention --output benchmarks/results/intervention.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from focus_rag.profile import Fingerprint, FocusProfile, HeadEntry
from focus_rag.split_softmax import split_softmax
from focus_rag.steering import focus

LAYERS, WIDTH, HEADS, KEY_HEADS, STEERED_HEADS = 12, 512, 8, 4, 20
VARIANTS = ("bare", "bare_again", "post_rope", "normed", "projection", "split_softmax")
CASES = {"quick": [(1, 256), (4, 64)], "default": [(1, 1024), (8, 1024), (1, 4096)], "full": [(8, 4096)]}
PREFILL_SECONDS, DECODE_STEPS = 100.0, 40


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
    """One passage of 128 tokens in the middle is the relevant one for split softmax; alpha differs from row to row."""
    if name.startswith("bare"):
        yield
    elif name == "split_softmax":
        start = length // 2
        spans = [[(start, min(start + 128, length - 1))]] * batch
        heads = [(entry.layer, entry.head) for entry in profile.heads]
        with split_softmax(model, heads, spans, length, tau=0.1):
            yield
    else:
        alphas = [0.1 + 0.05 * row for row in range(batch)]
        with focus(model, profile.replace(site=name), alphas):
            yield


def timed(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def rounds(count: int) -> Iterator[list[str]]:
    for index in range(count):
        turn = index % len(VARIANTS)
        order = [*VARIANTS[turn:], *VARIANTS[:turn]]
        yield order[::-1] if index % 2 else order


def summary(seconds: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    found = {}
    for name, times in seconds.items():
        pairs = list(zip(times, seconds["bare"], strict=True))
        cpu = sorted(one[1] / bare[1] for one, bare in pairs)
        found[name] = {
            "median_ms_cpu": round(1000 * statistics.median(one[1] for one in times), 3),
            "median_ms_wall": round(1000 * statistics.median(one[0] for one in times), 3),
            "ratio_cpu": round(statistics.median(cpu), 4),
            "ratio_wall": round(statistics.median(one[0] / bare[0] for one, bare in pairs), 4),
            "ratio_cpu_quartiles": [round(cpu[len(cpu) // 4], 4), round(cpu[(3 * len(cpu)) // 4], 4)],
        }
    return found


@torch.inference_mode()
def case(batch: int, length: int, budget: float, steps: int) -> dict[str, object]:
    model, profile = model_and_heads()
    ids = torch.randint(3, 4000, (batch, length))
    prefill: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    attach: dict[str, list[float]] = {name: [] for name in VARIANTS}
    once = timed(lambda: model(ids, logits_to_keep=1))[0]
    for name in VARIANTS:  # the self-check of a new model runs here, outside the figures
        with variant(name, model, profile, batch, length):
            model(ids[:, :8].contiguous())
    count = max(5, min(25, int(budget / (once * len(VARIANTS)))))
    for order in rounds(count):
        for name in order:
            begin = time.perf_counter()
            with variant(name, model, profile, batch, length):
                attach[name].append(time.perf_counter() - begin)
                prefill[name].append(timed(lambda: model(ids, logits_to_keep=1)))
    cache = model(ids, logits_to_keep=1).past_key_values
    decode: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    token = ids[:, :1].contiguous()

    def step() -> None:
        model(token, past_key_values=cache, logits_to_keep=1)
        cache.crop(-1)

    for order in rounds(steps):
        for name in order:
            with variant(name, model, profile, batch, length):
                # A prefilled cache stands in for the prompt that the split softmax would have counted.
                step()
                decode[name].append(timed(lambda: [step() for _ in range(3)]))
    return {
        "batch": batch,
        "prompt": length,
        "prefill": {"rounds": count, **summary(prefill)},
        "decode_3_tokens": {"rounds": steps, **summary(decode)},
        "attach_ms": {name: round(1000 * statistics.median(times), 3) for name, times in attach.items()},
    }


def peak_memory(length: int, repetitions: int) -> dict[str, object]:
    """Median peak resident memory of processes that load the model, prefill and decode 8 tokens (Linux)."""
    found: dict[str, list[int]] = {name: [] for name in VARIANTS}
    for _ in range(repetitions):
        for name in VARIANTS:
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
            model(ids[:, :1].contiguous(), past_key_values=cache, logits_to_keep=1)
    # A new program's own high-water mark; ru_maxrss would start from what its parent had used.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small prompts, under a minute")
    parser.add_argument(
        "--full", action="store_true", help="batch 8 with prompts of 4096 too: half an hour on two cores"
    )
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--conditions", default="", help="a remark on the machine's other load, kept in the result")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
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
