"""How well `estimate_noise` does on labelled retrievals: data in, JSON out.

Each line of the (gzipped) files is an object with `passages`, each with a `score` and `is_gold`. A question's passages
are sorted by score and cut to the top 3, 5, 10 or 15; with `--withhold 0.25` the relevant ones are taken away from a
quarter of the questions first.
Figures: root mean square error and rank correlation with the true share of irrelevant passages, for the estimate and
for the count alone (1 - 1 / n); AUC of the estimate for "a relevant passage is there" among questions with equally many
passages.

    python benchmarks/noise_estimate.py nq20.dev.jsonl.gz squad20.dev.jsonl.gz --withhold 0.25
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from focus_rag import estimate_noise

COUNTS = (3, 5, 10, 15)


def retrievals(path: Path, withhold: float, seed: int) -> list[tuple[list[float], list[bool]]]:
    """Scores, best first, and relevance of each question's passages."""
    draw = random.Random(seed)
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            passages = sorted(row["passages"], key=lambda passage: -passage["score"])
            n = draw.choice([count for count in COUNTS if count <= len(passages)] or [len(passages)])
            if draw.random() < withhold:
                passages = [passage for passage in passages if not passage["is_gold"]]
            passages = passages[:n]
            if len(passages) > 1:
                found.append(([p["score"] for p in passages], [bool(p["is_gold"]) for p in passages]))
    return found


def rms(errors: np.ndarray) -> float:
    """Root mean square: the loss that an expectation minimises."""
    return float(np.sqrt(np.mean(errors**2)))


def figures(found: list[tuple[list[float], list[bool]]]) -> dict[str, Any]:
    """Errors, correlations and AUC over one file."""
    true = np.array([1 - np.mean(gold) for _, gold in found])
    estimate = np.array([estimate_noise(scores) for scores, _ in found])
    counts = np.array([len(scores) for scores, _ in found])
    there = np.array([any(gold) for _, gold in found])
    alone = 1 - 1 / counts
    areas = []
    for count in np.unique(counts):
        rows = counts == count
        if 0 < there[rows].sum() < rows.sum():
            areas.append((roc_auc_score(there[rows], 1 - estimate[rows]), rows.sum()))
    return {
        "n": len(found),
        "true_noise": true.mean(),
        "estimated_noise": estimate.mean(),
        "root_mean_square_error": {"estimate": rms(estimate - true), "count": rms(alone - true)},
        "rank_correlation": {
            "estimate": spearmanr(estimate, true).statistic,
            "count": spearmanr(alone, true).statistic,
        },
        "auc_at_equal_counts": float(np.average([area for area, _ in areas], weights=[n for _, n in areas]))
        if areas
        else None,
        "without_relevant": int((~there).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--withhold", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    report = {path.name: figures(retrievals(path, arguments.withhold, arguments.seed)) for path in arguments.files}
    print(json.dumps(report, indent=2, default=float))


if __name__ == "__main__":
    main()
