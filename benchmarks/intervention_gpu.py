"""What focusing costs on a GPU: focused over bare, interleaved, for prefill and decode, and scoring of a long context.

    python -m benchmarks.intervention_gpu --output benchmarks/results/intervention_gpu.json
    python -m benchmarks.intervention_gpu --device cpu --toy          # the same code in seconds; its times say nothing

A random model of the shape of a 1.5-billion-parameter one, bfloat16. Every round runs all variants once, in an order
that turns and flips from round to round; a ratio is taken within a round and the median over rounds is reported.
`bare_again` is the noise. Times are those between two CUDA events (on a CPU: of the clock), what the host makes the GPU
wait included. Decoding uses the growing cache that `generate` uses by default.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import is_flash_attn_2_available

from benchmarks.intervention import CACHE, variant, written
from focus_rag.fingerprint import Fingerprint
from focus_rag.fitting.head_scoring import example_masses
from focus_rag.fitting.teacher_forcing import TeacherForced
from focus_rag.profile import FocusProfile, HeadEntry

VARIANTS = ("bare", "bare_again", "post_rope", "normed", "projection", "leaning", "answering")


@dataclass(frozen=True)
class Sizes:
    """Of the model and of what it is run on."""

    layers: int = 28
    width: int = 1536
    intermediate: int = 8960
    heads: int = 12
    key_heads: int = 2
    vocabulary: int = 32_000
    steered_heads: int = 20
    prefill: int = 8192
    prefill_rounds: int = 18
    batches: tuple[int, ...] = (1, 16, 64)
    decode_tokens: int = 4
    decode_rounds: int = 18
    scoring: int = 32_768


TOY = Sizes(2, 64, 128, 4, 2, 300, 3, 96, 2, (1, 2, 4), 2, 2, 512)


def model_and_profile(sizes: Sizes, device: str, attention: str) -> tuple[LlamaForCausalLM, FocusProfile]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.width, intermediate_size=sizes.intermediate, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.key_heads, max_position_embeddings=sizes.scoring,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, attn_implementation=attention, dtype=torch.bfloat16).eval()
    every = [(layer, head) for layer in range(sizes.layers) for head in range(sizes.heads)]
    chosen = [every[index] for index in torch.randperm(len(every))[: sizes.steered_heads].tolist()]
    entries = [HeadEntry(layer=layer, head=head) for layer, head in chosen]
    directions = torch.randn(len(entries), sizes.width // sizes.heads)
    return model, FocusProfile(Fingerprint.of(model), entries, directions, site="post_rope")


def milliseconds(run: Callable[[], object], device: str) -> float:
    if not device.startswith("cuda"):
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def interleaved(
    rounds: int,
    run: Callable[[], object],
    model: Any,
    profile: FocusProfile,
    batch: int,
    length: int,
    device: str,
    before: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Medians of all variants over the rounds, after one round that is not counted; `before` runs attached but untimed."""
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for index in range(rounds + 1):
        turn = index % len(VARIANTS)
        order = [*VARIANTS[turn:], *VARIANTS[:turn]]
        for name in order[::-1] if index % 2 else order:
            with variant(name, model, profile, batch, length):
                before()
                taken = milliseconds(run, device)
            if index:
                times[name].append(taken)
    found: dict[str, Any] = {"rounds": rounds}
    for name, values in times.items():
        ratios = sorted(one / bare for one, bare in zip(values, times["bare"], strict=True))
        found[name] = {
            "median_ms": round(statistics.median(values), 4),
            "ratio": round(statistics.median(ratios), 4),
            "ratio_quartiles": [round(ratios[len(ratios) // 4], 4), round(ratios[(3 * len(ratios)) // 4], 4)],
        }
    return found


@torch.inference_mode()
def prefill(sizes: Sizes, model: Any, profile: FocusProfile, device: str) -> dict[str, Any]:
    """A prompt of one row; what a request costs once, its shifts among it, is timed too."""
    ids = torch.randint(3, sizes.vocabulary, (1, sizes.prefill), device=device)
    return interleaved(
        sizes.prefill_rounds, lambda: model(ids, logits_to_keep=1), model, profile, 1, sizes.prefill, device
    )


@torch.inference_mode()
def decode(sizes: Sizes, batch: int, model: Any, profile: FocusProfile, device: str) -> dict[str, Any]:
    """Some tokens of a batch whose rows share one prompt."""
    ids = torch.randint(3, sizes.vocabulary, (1, sizes.prefill), device=device)
    cache = model(ids, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(batch)
    token = ids[:, :1].expand(batch, 1).contiguous()

    def steps(count: int = sizes.decode_tokens) -> None:
        for _ in range(count):
            model(token, **{CACHE: cache}, logits_to_keep=1)
        cache.crop(-count)

    # As in a request, where the prefill has met the shifts before the first token is decoded.
    return interleaved(
        sizes.decode_rounds, steps, model, profile, batch, sizes.prefill, device, before=lambda: steps(1)
    )


def scoring(sizes: Sizes, model: Any, device: str, rows: int = 32, passages: int = 20) -> dict[str, Any]:
    """One contextual scoring of all heads at full length, with its peak memory beyond the model."""
    ids = torch.randint(3, sizes.vocabulary, (sizes.scoring,)).tolist()
    prompt = sizes.scoring - rows
    size = (prompt - 100) // passages
    spans = [(50 + i * size, 50 + (i + 1) * size) for i in range(passages)]
    example = TeacherForced(
        tuple(ids), prompt, tuple(range(prompt - 1, sizes.scoring - 1)), (spans[7],), (*spans[:7], *spans[8:])
    )
    on_gpu = device.startswith("cuda")
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    found: dict[str, Any] = {"tokens": sizes.scoring, "heads": sizes.layers * sizes.heads}
    try:
        with torch.inference_mode():
            times = [milliseconds(lambda: example_masses(model, example), device) for _ in range(4)]
    except torch.OutOfMemoryError:
        return {**found, "out_of_memory": True}
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else None
    return {
        **found,
        "out_of_memory": False,
        "median_ms": round(statistics.median(times[1:]), 3),
        "peak_extra_bytes": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--scoring", action=argparse.BooleanOptionalAction, default=True, help="score a long context too"
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--output", type=Path, help="also write the JSON here, after every case")
    parser.add_argument("--conditions", default="", help="a remark on the machine's other load, kept in the result")
    options = parser.parse_args()
    sizes = TOY if options.toy else Sizes()
    on_gpu = options.device.startswith("cuda")
    result: dict[str, Any] = {
        "sizes": asdict(sizes),
        "device": torch.cuda.get_device_name(options.device) if on_gpu else platform.machine(),
        "dtype": "bfloat16",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__},
        "flash_attention_2": "present" if is_flash_attn_2_available() else "not installed, not measured",
        "conditions": options.conditions,
        "attention": {},
    }  # fmt: skip
    for attention in ("sdpa", *(["flash_attention_2"] if on_gpu and is_flash_attn_2_available() else [])):
        model, profile = model_and_profile(sizes, options.device, attention)
        found = result["attention"][attention] = {"prefill": prefill(sizes, model, profile, options.device)}
        for batch in sizes.batches:
            name = f"decode_{sizes.decode_tokens}_tokens_batch_{batch}"
            try:
                found[name] = decode(sizes, batch, model, profile, options.device)
            except torch.OutOfMemoryError:
                found[name] = {"out_of_memory": True}
            if on_gpu:
                torch.cuda.empty_cache()
            written(result, options.output)
            print(f"{attention}, batch {batch}: done", file=sys.stderr)
        if options.scoring:
            found["contextual_scoring"] = scoring(sizes, model, options.device)
        del model
    print(written(result, options.output), end="")


if __name__ == "__main__":
    main()
