"""What a fit leaves open, measured on the embedded reader: whose answer is the response, and where the shift enters.

Contextual heads and directions come from questions of the generated world's dev split. Other questions of it tell what
they do: attention mass on the gold passage with all heads steered at once, at more passages and at positions that are
moved up (a model with rotary positions does not notice unless the shift depends on them), and exact answers.

    python -m benchmarks.direction_choices --part sites --train 160 --questions 120 --output benchmarks/results/direction_choices_sites.json
    python -m benchmarks.direction_choices --part sites --passages 20 --train 160 --questions 120 --output benchmarks/results/direction_choices_sites_20.json
    python -m benchmarks.direction_choices --part responses --train 160 --questions 200 --output benchmarks/results/direction_choices_responses.json
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.intervention import written
from focus_rag.attention.steering import focus
from focus_rag.embedded import embedded_model_folder
from focus_rag.embedded.retrieval import evaluation_examples
from focus_rag.examples import Example, examples_from_rows
from focus_rag.fingerprint import Fingerprint
from focus_rag.fitting.asking import answer_texts, measure_quality
from focus_rag.fitting.direction_training import TrainingSettings, train_directions
from focus_rag.fitting.estimate import Estimate
from focus_rag.fitting.head_scoring import example_masses, score_heads
from focus_rag.fitting.recorded_heads import record_examples
from focus_rag.fitting.teacher_forcing import TeacherForced, teacher_forced_all
from focus_rag.generator import FocusGenerator
from focus_rag.profile import FocusProfile, HeadEntry

HEADS, NEW_TOKENS = 4, 32
LENGTHS = ((8, 0), (8, 1000), (8, 2000), (20, 0), (40, 0))
"""Passages, and by how much positions are moved up."""


def questions(count: int, passages: int, seed: int) -> list[Example]:
    """Questions of the dev split, half put plainly and half with half of the facts not, every passage beside the gold
    hard.
    """
    rows = [
        row
        for half, rich in enumerate((0.0, 0.5))
        for row in evaluation_examples("dev", count // 2, passages, 1.0, seed + half, rich=rich)
    ]
    return list(examples_from_rows(rows).examples)


@contextlib.contextmanager
def moved_positions(model: Any, by: int) -> Iterator[None]:
    """Every token stands `by` positions further on."""

    def move(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": kwargs["position_ids"] + by}
        return (args[0], args[1] + by, *args[2:]), kwargs

    handle = model.model.rotary_emb.register_forward_pre_hook(move, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def laid_out(reader: FocusGenerator, examples: Sequence[Example], response: str) -> list[TeacherForced]:
    """Examples with the gold answer, the model's own, or each of them in turn."""
    own = answer_texts(reader, examples, 0.0, max_new_tokens=NEW_TOKENS) if response != "gold" else []
    pairs = [(one, one.answers[0]) for one in examples] if response != "model" else []
    pairs += [(one, text.strip() or one.answers[0]) for one, text in zip(examples, own, strict=False)]
    return teacher_forced_all(
        reader.prompts,
        [one for one, _ in pairs],
        max_tokens=4096,
        max_rows=32,
        rows="found",
        responses=[text for _, text in pairs],
    )


def profile_of(reader: FocusGenerator, training: list[TeacherForced], where: str, loss: str) -> FocusProfile:
    """The heads that score best, with trained directions; `turned` ones are tied to where the passages begin."""
    site = where.removesuffix(" turned")
    at = round(median(one.passages_at for one in training)) if site != where else None
    scores = score_heads(reader.model, training)
    heads = scores.ranking()[:HEADS]
    held_out = len(training) // 5
    trained = train_directions(
        record_examples(reader.model, training[held_out:], heads, site, passages_at=at),
        record_examples(reader.model, training[:held_out], heads, site, passages_at=at),
        TrainingSettings(loss=loss),
    )
    entries = [HeadEntry(layer=layer, head=head, score=scores.of((layer, head))) for layer, head in heads]
    fingerprint = Fingerprint.of(reader.model, reader.tokenizer)
    return FocusProfile(fingerprint, entries, trained.directions, site=site, passages_at=at)


def gold_mass(
    reader: FocusGenerator, profile: FocusProfile, examples: Sequence[TeacherForced], moved: int
) -> dict[str, Any]:
    """Mass on gold of the profile's heads, bare and at alpha 1, and the paired difference."""
    heads = profile.head_pairs

    def masses(alpha: float) -> list[float]:
        found = []
        for one in examples:
            with (
                moved_positions(reader.model, moved),
                focus(reader.model, profile, alpha, passages_at=one.passages_at + moved),
            ):
                found.append(float(example_masses(reader.model, one, heads=heads)[:, 0].mean()))
        return found

    bare, steered = masses(0.0), masses(1.0)
    gain = [after - before for before, after in zip(bare, steered, strict=True)]
    return {"bare": Estimate.of(bare).to_dict(), "gain": Estimate.of(gain).to_dict()}


def main() -> None:
    """Run every comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=120, help="questions to train on")
    parser.add_argument("--passages", type=int, default=8, help="passages of the questions to train on")
    parser.add_argument("--questions", type=int, default=100, help="questions to answer")
    parser.add_argument("--part", choices=("responses", "sites"), action="append", help="leave the other out")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    reader = FocusGenerator.from_pretrained(embedded_model_folder())
    reader = FocusGenerator(reader.model, reader.tokenizer, None, measure=False)
    training, asked = questions(options.train, options.passages, seed=500), questions(options.questions, 20, seed=600)
    known = {one.key for one in training}
    asked = [one for one in asked if one.key not in known]

    def answered(profile: FocusProfile | None, alpha: float) -> list[float]:
        generator = FocusGenerator(reader.model, reader.tokenizer, profile, measure=False)
        return measure_quality(generator, asked, alpha, grading="exact", max_new_tokens=NEW_TOKENS)

    bare = answered(None, 0.0)
    result: dict[str, Any] = {"heads": HEADS, "bare": Estimate.of(bare).to_dict(), "responses": {}, "sites": {}}

    def gains(profile: FocusProfile) -> dict[str, Any]:
        columns = {alpha: answered(profile, alpha) for alpha in (0.5, 1.0)}
        return {
            f"{alpha:g}": Estimate.of([after - before for before, after in zip(bare, column, strict=True)]).to_dict()
            for alpha, column in columns.items()
        }

    parts = options.part or ("responses", "sites")
    for response in ("gold", "model", "both") if "responses" in parts else ():
        profile = profile_of(reader, laid_out(reader, training, response), "post_rope turned", "mass")
        heads = [[entry.layer, entry.head, round(entry.score or 0.0, 4)] for entry in profile.heads]
        result["responses"][response] = {"heads": heads, "gain": gains(profile)}
    held = {
        (count, moved): laid_out(reader, questions(40, count, seed=600), "gold")
        for count, moved in LENGTHS
        if not moved
    }
    for loss in ("log_mass", "mass") if "sites" in parts else ():
        for site in ("post_rope", "post_rope turned", "normed"):
            profile = profile_of(reader, laid_out(reader, training, "gold"), site, loss)
            result["sites"][f"{site}, {loss}"] = {
                "gold_mass": {
                    f"{count} passages, +{moved}": gold_mass(reader, profile, held[count, 0], moved)
                    for count, moved in LENGTHS
                },
                "gain": gains(profile),
            }
    print(written(result, options.output), end="")


if __name__ == "__main__":
    main()
