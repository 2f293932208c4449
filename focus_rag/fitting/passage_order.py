"""How much of what a profile gains is the retriever's order, learned: questions asked again with their passages
shuffled.

Attention to the first passages is a way to the gold one wherever a retriever puts it first. Directions learn that with
the rest, and where it stands elsewhere they then do harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from focus_rag.examples import Example
from focus_rag.fitting.estimate import Estimate

Grades = Callable[[Sequence[Example], bool], Sequence[float]]
Pair = tuple[Sequence[float], Sequence[float]]
"""Grades of the same questions, bare and focused."""


def order_figures(questions: Sequence[Example], retrieved: Pair, seed: int, grades: Grades) -> dict[str, Any]:
    """Quality bare and under the fitted policy, in the order of the questions and in a random one.

    Args:
        questions: With as many passages as are to be shown.
        retrieved: What they were worth in their own order.
        seed: Of the random order.
        grades: Grades of questions, with focus or without.

    Returns:
        For each order `bare`, `auto` and the paired `gain`, as estimates.
    """
    shuffled = [one.shuffled(seed) for one in questions]
    pairs = {"as retrieved": retrieved, "shuffled": (grades(shuffled, False), grades(shuffled, True))}
    found: dict[str, Any] = {}
    for name, (bare, auto) in pairs.items():
        gains = [after - before for before, after in zip(bare, auto, strict=True)]
        found[name] = {
            what: Estimate.of(values).to_dict() for what, values in (("bare", bare), ("auto", auto), ("gain", gains))
        }
    return found


def order_warning(figures: dict[str, Any], margin: float) -> str | None:
    """What to say where focus is not shown to be harmless once the order is random; None where it is.

    Harm has to be ruled out rather than proven: with the few questions of a fit a loss of several points is within
    chance, and a profile that leaves other orders alone loses nothing by it.

    Args:
        figures: See `order_figures`.
        margin: Loss that is let pass, as a share of right answers: the lower limit of the gain may not lie below it.
    """
    gain = figures["shuffled"]["gain"]
    if gain["low"] >= -margin:
        return None
    what = "are answered worse" if gain["high"] < 0 else f"may be answered more than {100 * margin:g} points worse"
    return (
        f"With their passages in random order, {gain['n']} dev questions {what} focused than bare "
        f"({100 * gain['mean']:+.1f} points, 95% interval {100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}): "
        "the directions have learned where the retriever puts the gold passage. So alpha is 0 where scores say that "
        "passages are in another order; without scores that cannot be told. `training_order='shuffled'` "
        "(`--shuffle`) fits directions that do not rely on the order."
    )
