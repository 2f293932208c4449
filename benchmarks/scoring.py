"""What contextual scoring costs beside the forward pass it rides on, in processor time and peak memory.

    python benchmarks/scoring.py --tokens 4096 --out scoring.json

Plain pass (vocabulary projection included, which scoring leaves out), decoder alone and scored pass alternate; the
ratio is the median over pairs, with a plain pass against a plain pass beside it to show what chance does. Each memory
figure comes from a process of its own, and the ways take turns; the ratio is that of medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from focus_rag.fitting.head_scoring import example_masses
from focus_rag.fitting.teacher_forcing import TeacherForced

LAYERS, WIDTH, HEADS, VOCABULARY = 12, 512, 8, 8192


def build(tokens: int, attention: str) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS // 2, max_position_embeddings=tokens,
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()


def build_example(tokens: int, rows: int = 32, passages: int = 20) -> TeacherForced:
    ids = torch.randint(10, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    prompt = tokens - rows
    size = (prompt - 100) // passages
    spans = [(50 + i * size, 50 + (i + 1) * size) for i in range(passages)]
    return TeacherForced(
        tuple(ids), prompt, tuple(range(prompt - 1, tokens - 1)), (spans[7],), tuple(spans[:7] + spans[8:])
    )


def ways(model: Any, example: TeacherForced) -> dict[str, Callable[[], Any]]:
    ids = torch.tensor([example.input_ids])

    def plain() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)

    def decoder() -> None:
        with torch.no_grad():
            model.model(input_ids=ids, use_cache=False)

    def eager() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False, output_attentions=True)

    def scored() -> None:
        example_masses(model, example)

    return {"plain": plain, "plain again": plain, "decoder": decoder, "scored": scored, "eager": eager}


def peak_memory(way: str, tokens: int) -> float:
    """Peak resident memory beyond the loaded model, in MB, of one pass in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here, (way, tokens))


def peak_memories(names: list[str], options: argparse.Namespace) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.memory_repeats):
        for name in names:
            found[name].append(peak_memory(name, options.tokens))
    return found


def _peak_here(way: str, tokens: int) -> float:
    torch.set_num_threads(1)
    model, example = build(tokens, "eager" if way == "eager" else "sdpa"), build_example(tokens)
    small = build_example(256)
    ways(model, small)[way]()  # first calls import and allocate once and for all
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = _peak_so_far()
    ways(model, example)[way]()
    return _peak_so_far() - before


def _peak_so_far() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-repeats", type=int, default=5, help="fresh processes for each way")
    parser.add_argument(
        "--eager", action="store_true", help="measure full attention matrices as well (slow, gigabytes)"
    )
    parser.add_argument("--out", type=Path, default=Path("scoring.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, example = build(options.tokens, "sdpa"), build_example(options.tokens)
    timed = {name: way for name, way in ways(model, example).items() if name != "eager"}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(options.repeats + 1):
        for name, way in timed.items():
            start = time.process_time()
            way()
            if repeat:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    found: dict[str, Any] = {
        "tokens": options.tokens, "layers": LAYERS, "width": WIDTH, "heads": LAYERS * HEADS, "rows": len(example.rows), "spans": 1 + len(example.others) + 1,
        "cpu_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio_to_plain": {
            name: {"median": statistics.median(ratios), "all": ratios}
            for name, values in seconds.items()
            if name != "plain"
            for ratios in [[one / plain for one, plain in zip(values, seconds["plain"], strict=True)]]
        },
        "torch": torch.__version__, "threads": 1,
    }  # fmt: skip
    memory = peak_memories(["plain", "decoder", "scored", *(["eager"] if options.eager else [])], options)
    found["peak_extra_mb"] = {
        name: {"median": statistics.median(values), "all": values} for name, values in memory.items()
    }
    found["peak_ratio_to_plain"] = {
        name: statistics.median(values) / statistics.median(memory["plain"]) for name, values in memory.items()
    }
    if options.eager:
        slow = build(options.tokens, "eager")
        start = time.process_time()
        ways(slow, example)["eager"]()
        found["cpu_seconds"]["eager"] = time.process_time() - start
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps(found["ratio_to_plain"], indent=1), json.dumps(found["peak_extra_mb"]), found["peak_ratio_to_plain"]
    )


if __name__ == "__main__":
    main()
