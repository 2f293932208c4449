"""What a longer instruction before the passages does to a profile that was fitted with a short one, on the embedded
reader.

Exact answers of the same dev questions, bare, focused with directions turned to where the passages begin, and focused
without the turn, as published directions are. What is added to the instruction says nothing about any question.

    python -m benchmarks.long_instructions --output benchmarks/results/long_instructions.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.direction_choices import NEW_TOKENS, questions
from benchmarks.intervention import written
from focus_rag.embedded import embedded_model_folder, embedded_profile_folder
from focus_rag.fitting.asking import measure_quality
from focus_rag.fitting.estimate import Estimate
from focus_rag.generator import FocusGenerator
from focus_rag.profile import FocusProfile
from focus_rag.prompt_layout import PromptLayout

HOUSE_RULE = "Write in plain words and keep to the passages. "
REPEATED = (0, 2, 8, 24)
PASSAGES = 20


def main() -> None:
    """Answer under every instruction and print the shares of exact answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    reader = FocusGenerator.from_pretrained(embedded_model_folder())
    profile = FocusProfile.load(embedded_profile_folder())
    asked = questions(options.questions, PASSAGES, seed=900)
    rows = []
    for repeated in REPEATED:
        layout = PromptLayout(instruction=HOUSE_RULE * repeated + PromptLayout().instruction)

        def graded(of: FocusProfile | None, layout: PromptLayout = layout) -> list[float]:
            generator = FocusGenerator(reader.model, reader.tokenizer, of, layout=layout, measure=False)
            alpha = "auto" if of is None else of.policy
            return measure_quality(generator, asked, alpha, grading="exact", max_new_tokens=NEW_TOKENS)  # type: ignore[arg-type]

        columns = {
            "bare": graded(None),
            "turned": graded(profile),
            "as published": graded(profile.replace(passages_at=None)),
        }
        row = {"tokens_added": reader.count_tokens(HOUSE_RULE * repeated)}
        for name, column in columns.items():
            gain = [after - before for after, before in zip(column, columns["bare"], strict=True)]
            row[name] = {"exact": Estimate.of(column).to_dict(), "gain": Estimate.of(gain).to_dict()}  # type: ignore[assignment]
        rows.append(row)
    print(written({"passages": PASSAGES, "rows": rows}, options.output), end="")


if __name__ == "__main__":
    main()
