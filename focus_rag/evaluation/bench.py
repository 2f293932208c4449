"""Speed and memory of every method on the same questions, and of rival packages where they run."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from focus_rag.evaluation.cases import Case, Cell, EmbeddedCases
from focus_rag.evaluation.engine import Engine
from focus_rag.evaluation.methods import Tuned, every_name, methods_named
from focus_rag.evaluation.speed import PeakMemory, measure_speed
from focus_rag.generator import FocusGenerator
from focus_rag.probing import input_device
from focus_rag.token_rows import pad_token

Progress = Callable[[str, int, int], None]
Row = dict[str, Any]

PLAIN = "transformers alone"
"""Row of the model's own `generate` on the same prompts, with nothing attached and nothing measured."""
_RIVALS = {"pastalib": "pastalib.pasta", "steering-vectors": "steering_vectors", "kvpress": "kvpress"}


def bench(
    generator: FocusGenerator,
    *,
    passages: int = 20,
    questions: int = 5,
    max_new_tokens: int = 32,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> dict[str, Row]:
    """Measure every method that the generator can run; of tuned ones the first candidate, since all cost the same.

    Args:
        generator: Model and profile.
        passages: Passages per question.
        questions: Questions to take the median over.
        max_new_tokens: Longest answer, in tokens.
        seed: Of the questions.
        progress: Called with a label, methods done and methods in all.

    Returns:
        By method the figures of `measure_speed`, or a `note` that says why there are none; then the model's own
        `generate`, bare and under the rival packages.
    """
    engine = Engine(generator, max_new_tokens=max_new_tokens)
    cases = EmbeddedCases("dev").cases(Cell(count=passages), questions, seed)
    rows: dict[str, Row] = {}
    methods = methods_named(every_name())
    for done, named in enumerate(methods, start=1):
        method = named.candidates[0] if isinstance(named, Tuned) else named
        if method.needs_profile and generator.profile is None:
            rows[named.name] = {"note": "it needs a focus profile, and the model has none"}
        else:
            rows[named.name] = {**measure_speed(engine, method, cases)}
        progress(named.name, done, len(methods))
    rows[PLAIN] = _medians([_timed(engine, case) for case in cases])
    for package, module in _RIVALS.items():
        rows[package] = _rival(engine, cases, package, module)
    return rows


def _medians(rows: Sequence[Row]) -> Row:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _rival(engine: Engine, cases: Sequence[Case], package: str, module: str) -> Row:
    """One rival package on the questions, or why not. Whatever a foreign package raises becomes the note."""
    try:
        imported: Any = importlib.import_module(module)
        row = _medians([_RUNNERS[package](imported, engine, case) for case in cases])
    except ImportError as error:
        return {"note": _why_not(package, error)}
    except Exception as error:
        return {
            "note": f"does not run with transformers {version('transformers')}: {type(error).__name__}: {error}"[:200]
        }
    return {**row, "note": f"{package} {version(package)}"}


def _why_not(package: str, error: ImportError) -> str:
    try:
        return f"{package} {version(package)} cannot be imported with transformers {version('transformers')}: {error}"[
            :200
        ]
    except PackageNotFoundError:
        return f"not installed (pip install {package})"


def _timed(engine: Engine, case: Case) -> Row:
    """Whole seconds of one greedy answer with whatever is attached, after one that is not counted."""
    ids, mask = engine.padded([prompt.input_ids for prompt in engine.batch([case]).prompts])
    seconds = 0.0
    for _ in range(2):
        memory, start = PeakMemory(input_device(engine.model)), time.perf_counter()
        with torch.inference_mode():
            engine.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=engine.settings.max_new_tokens,
                do_sample=False,
                pad_token_id=pad_token(engine.model, engine.tokenizer),
            )
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_memory_mib": memory.mib()}


def _pastalib(imported: Any, engine: Engine, case: Case) -> Row:
    heads: dict[str, list[int]] = {}
    for layer, head in engine.heads if engine.profile is not None else engine.every_head[:1]:
        heads.setdefault(str(layer), []).append(head)
    steerer = imported.PASTA(engine.model, engine.tokenizer, head_config=heads, alpha=0.01, scale_position="exclude")
    text = engine.batch([case]).prompts[0].text
    inputs, offsets = steerer.inputs_from_batch([text])
    with steerer.apply_steering(
        model=engine.model,
        strings=[text],
        substrings=[[case.example.passages[0].text]],
        model_input=inputs,
        offsets_mapping=offsets,
    ):
        return _timed(engine, case)


def _steering_vectors(imported: Any, engine: Engine, case: Case) -> Row:
    width = engine.model.config.get_text_config().hidden_size
    layer = engine.model.config.get_text_config().num_hidden_layers // 2
    with imported.SteeringVector({layer: torch.zeros(width)}).apply(engine.model):
        return _timed(engine, case)


def _kvpress(imported: Any, engine: Engine, case: Case) -> Row:
    with imported.SnapKVPress(compression_ratio=0.3)(engine.model):
        return _timed(engine, case)


_RUNNERS: dict[str, Callable[[Any, Engine, Case], Row]] = {
    "pastalib": _pastalib,
    "steering-vectors": _steering_vectors,
    "kvpress": _kvpress,
}
