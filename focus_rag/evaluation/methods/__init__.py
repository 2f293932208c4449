"""The methods that are compared, each a page or less behind one protocol (`Method`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.methods.attention_rerank import AttentionRerank
from focus_rag.evaluation.methods.context_aware import ContextAware
from focus_rag.evaluation.methods.focusing import Auto, Directions, Fixed, RandomHeads, ThenAuto
from focus_rag.evaluation.methods.method import Method, Tuned
from focus_rag.evaluation.methods.plain import Bare, ClosedBook, GoldOnly
from focus_rag.evaluation.methods.retrieval_rules import KeepBest, PassageChoice, Reorder, ScoreCutOff, TopM
from focus_rag.evaluation.methods.scalars import QueryTemperature, SinkBias
from focus_rag.evaluation.methods.span_rivals import InstABoost, Pasta, SpotLight
from focus_rag.evaluation.methods.split import FixedSplit, GoldSplit
from focus_rag.evaluation.results import DIRECTIONS, SPLIT_GOLD, SPLIT_TUNED
from focus_rag.score_split import ScoreSplit

__all__ = ["ALPHAS", "Method", "Tuned", "every_name", "methods_named"]

ALPHAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""The published script's positive intervention factors but one (0.4)."""

NEGATIVE_ALPHA = -0.5
_BOOSTS = (2.0, 5.0, 10.0, 20.0)
_SINK_BIASES = (1.0, 2.0, 4.0, 8.0)
_TEMPERATURES = (1.1, 1.25, 1.5, 2.0)
_LOG_SLOPES = (0.05, 0.1, 0.2, 0.4)
_CONTRASTS = (0.5, 1.0)
_TAUS = (0.1, 0.03, 0.01)
_REACHES = (0.0, 0.3)
_KEPT = (3, 8)
_KEEP_BEST = re.compile(r"keep best ([1-9]\d{0,3})(, then auto)?")
_SPANS: tuple[PassageChoice, ...] = ("top 1", "all", "gold")


def _then_auto(m: int) -> ThenAuto:
    return ThenAuto(TopM(m))


def _boost(which: PassageChoice) -> Tuned:
    return Tuned(f"InstABoost, {which}", tuple(InstABoost(which, factor) for factor in _BOOSTS))


_METHODS: dict[str, Callable[[], Method | Tuned]] = {
    "bare": Bare,
    "gold only": GoldOnly,
    "closed book": ClosedBook,
    "auto": Auto,
    DIRECTIONS: Directions,
    "best fixed alpha": lambda: Tuned("best fixed alpha", tuple(Fixed(alpha) for alpha in ALPHAS)),
    **{f"alpha={alpha:g}": partial(Fixed, alpha) for alpha in (NEGATIVE_ALPHA, *ALPHAS)},
    "random heads": RandomHeads,
    "best fixed split": lambda: Tuned(
        "best fixed split", tuple(FixedSplit(ScoreSplit(reach=reach, tau=tau)) for reach in _REACHES for tau in _TAUS)
    ),
    SPLIT_GOLD: GoldSplit,
    SPLIT_TUNED: lambda: Tuned(SPLIT_TUNED, tuple(GoldSplit(tau=tau) for tau in _TAUS)),
    "score cut-off": ScoreCutOff,
    "score cut-off, then auto": lambda: ThenAuto(ScoreCutOff()),
    **{f"top {m} only": partial(TopM, m) for m in _KEPT},
    **{f"top {m} only, then auto": partial(_then_auto, m) for m in _KEPT},
    "keep best 8": KeepBest,
    "keep best 8, then auto": lambda: ThenAuto(KeepBest()),
    "long-context reorder": Reorder,
    "attention rerank": AttentionRerank,
    **{f"PASTA, {which}": partial(Pasta, which) for which in _SPANS},
    **{f"InstABoost, {which}": partial(_boost, which) for which in _SPANS},
    **{f"SpotLight, {which}": partial(SpotLight, which) for which in _SPANS},
    "context-aware decoding": lambda: Tuned(
        "context-aware decoding", tuple(ContextAware(weight) for weight in _CONTRASTS)
    ),
    "sink bias": lambda: Tuned("sink bias", tuple(SinkBias(bias) for bias in _SINK_BIASES)),
    "query temperature": lambda: Tuned("query temperature", tuple(QueryTemperature(value) for value in _TEMPERATURES)),
    "query temperature, log n": lambda: Tuned(
        "query temperature, log n", tuple(QueryTemperature(value, by_log_count=True) for value in _LOG_SLOPES)
    ),
}


def every_name() -> tuple[str, ...]:
    """Names of all methods, in the order of the tables."""
    return tuple(_METHODS)


def methods_named(names: Sequence[str]) -> list[Method | Tuned]:
    """The methods of these names; `alpha=NUMBER` is one for any number, and so is `keep best NUMBER`, alone or followed
    by `, then auto`.

    Raises:
        InvalidInputError: No such method; the message lists them.
    """
    found: list[Method | Tuned] = []
    for name in dict.fromkeys(one.strip() for one in names):
        if name in _METHODS:
            found.append(_METHODS[name]())
        elif name.startswith("alpha=") and _is_number(name[6:]):
            found.append(Fixed(float(name[6:])))
        elif kept := _KEEP_BEST.fullmatch(name):
            rule = KeepBest(int(kept[1]))
            found.append(ThenAuto(rule) if kept[2] else rule)
        else:
            raise InvalidInputError(
                f"No method {name!r}. There are: {'; '.join(_METHODS)}; alpha=NUMBER; keep best NUMBER; keep best "
                "NUMBER, then auto."
            )
    return found


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < float("inf")
    except ValueError:
        return False
