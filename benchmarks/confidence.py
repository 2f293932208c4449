"""How well the confidence of an answer tells right ones from wrong ones, on questions of the generated world with and
without their gold passage.

Fitted on questions of the dev split, measured on those of the test split; a third of each plainly put, a third half and
a third all in forms that training did not have, each question among 3, 8 and 20 passages by BM25. Answers that say
nothing is stated are left out of both.

    python -m benchmarks.confidence --output benchmarks/results/confidence.json
    python -m benchmarks.confidence --questions 0 --write PROFILE      # only fits, and writes it into a profile of the embedded reader
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.intervention import written
from focus_rag.confidence import Confidence
from focus_rag.embedded import embedded_profile_folder
from focus_rag.embedded.retrieval import evaluation_examples
from focus_rag.examples import examples_from_rows
from focus_rag.fitting.confidence_fitting import (
    Judged,
    area_under_curve,
    ask_and_judge,
    fit_confidence,
    weights_at,
)
from focus_rag.fitting.settings import FitSettings
from focus_rag.generator import FocusGenerator
from focus_rag.profile import FocusProfile

RICH, COUNTS, NEW_TOKENS = (0.0, 0.5, 1.0), (3, 8, 20), 32
THRESHOLDS = (0.1, 0.2, 0.3, 0.5)
Cell = tuple[float, int]


def main() -> None:
    """Fit, and measure on other questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, default=embedded_profile_folder())
    parser.add_argument("--fitted-on", type=int, default=100, help="dev questions of each kind")
    parser.add_argument("--questions", type=int, default=100, help="test questions of each kind")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    profile = FocusProfile.load(options.profile)
    generator = FocusGenerator.from_pretrained(None, profile)
    trained_on = set(profile.provenance.get("trained_on", []))
    share = FitSettings().missing_share
    dev = [one for _, found in _asked(generator, "dev", options.fitted_on, trained_on) for one in found]
    confidence, fitted = fit_confidence(dev, share, 0)
    if confidence is None:
        raise SystemExit(f"Too few right or wrong answers: {fitted}")
    if options.write:
        chosen_on = sorted({*profile.provenance.get("chosen_on", []), *(one.key[:12] for one in dev)})
        changes = {
            "provenance": {**profile.provenance, "chosen_on": chosen_on},
            "report": {**profile.report, "confidence": fitted},
        }
        profile.replace(confidence=confidence, **changes).save(options.write)
    result: dict[str, Any] = {"confidence": confidence.named, "fitted": fitted}
    if options.questions:
        cells = list(_asked(generator, "test", options.questions, set()))
        result["test"] = [
            {
                "rich": rich,
                **_measured(
                    confidence, [one for (own, _), found in cells if rich in (own, None) for one in found], share
                ),
            }
            for rich in (None, *RICH)
        ]
        result["passages"] = [
            {
                "count": count,
                **_measured(confidence, [one for (_, own), found in cells if own == count for one in found], share),
            }
            for count in COUNTS
        ]
    print(written(result, options.output), end="")


def _asked(
    generator: FocusGenerator, split: Literal["dev", "test"], questions: int, left_out: set[str]
) -> Iterator[tuple[Cell, list[Judged]]]:
    for rich in RICH:
        for count in COUNTS:
            rows = evaluation_examples(split, questions, count, 1.0, 0, rich=rich)
            examples = [one for one in examples_from_rows(rows).examples if one.key[:12] not in left_out]
            found: list[Judged] = []
            for gold_missing in (False, True):
                found += ask_and_judge(
                    generator, examples, "exact", max_new_tokens=NEW_TOKENS, gold_missing=gold_missing
                )
            yield (rich, count), found


def _measured(confidence: Confidence, found: Sequence[Judged], missing_share: float) -> dict[str, Any]:
    told = np.array([confidence.of(one.support) or 0.0 for one in found])
    is_right, missing = np.array([one.is_right for one in found]), np.array([one.gold_missing for one in found])
    weights = weights_at(missing_share, missing)
    bins = np.minimum((told * 5).astype(int), 4)
    return {
        "answers": len(found),
        "right": int(is_right.sum()),
        "auroc": area_under_curve(told, is_right, [one.key for one in found], 0),
        "auroc of the mean log-probability alone": float(
            roc_auc_score(is_right, [one.support.logprob for one in found])
        ),
        "below": {
            f"{limit:g}": {
                "right": float((told[is_right] < limit).mean()),
                "wrong, gold there": _share(told[~is_right & ~missing] < limit),
                "gold missing": _share(told[missing] < limit),
            }
            for limit in THRESHOLDS
        },
        "brier": float(np.average((told - is_right) ** 2, weights=weights)),
        "told and found": [
            {
                "answers": int((bins == place).sum()),
                "told": float(np.average(told[bins == place], weights=weights[bins == place])),
                "right": float(np.average(is_right[bins == place], weights=weights[bins == place])),
            }
            for place in range(5)
            if (bins == place).any()
        ],
    }


def _share(below: Any) -> float | None:
    return float(below.mean()) if len(below) else None


if __name__ == "__main__":
    main()
