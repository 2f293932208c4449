"""Pictures of an evaluation as PNG bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from focus_rag.evaluation.results import (
    AUTO,
    BARE,
    BEST_FIXED,
    BEST_OF_ALPHAS,
    DIRECTIONS,
    GOLD_ONLY,
    RANDOM_HEADS,
    SPLIT_TUNED,
    Evaluation,
)

EVERY_METHOD, BY_COUNT = "Every method in the headline cell", "Quality against the number of passages"
_LINES = (
    BARE,
    AUTO,
    "keep best 8, then auto",
    DIRECTIONS,
    BEST_FIXED,
    GOLD_ONLY,
    SPLIT_TUNED,
    "top 3 only",
    "attention rerank",
    RANDOM_HEADS,
)


def pictures(evaluation: Evaluation) -> dict[str, bytes]:
    """Every picture the answers allow, by title."""
    drawn = {
        EVERY_METHOD: _every_method(evaluation),
        BY_COUNT: _by_count(evaluation),
        "Quality against the gold passage's position": _by_position(evaluation),
        "Quality against alpha": _by_alpha(evaluation),
        "Contextual heads": _head_map(evaluation),
        "Regret of alpha by retrieval": _regret(evaluation),
        "Passages by attention": _passages(evaluation),
    }
    return {title: picture for title, picture in drawn.items() if picture is not None}


def _every_method(evaluation: Evaluation) -> bytes | None:
    cell = evaluation.main_cell
    found = {name: one for name in evaluation.reported_methods if (one := evaluation.interval(cell, name)).n}
    if len(found) < 2:
        return None
    bounds = evaluation.bounds
    names = sorted(found, key=lambda name: found[name].mean)
    figure, axes = _canvas(height=0.6 + 0.17 * len(names))
    for place, name in enumerate(names):
        one, colour = found[name], {AUTO: "tab:red", BARE: "black"}.get(name, "0.6" if name in bounds else "tab:blue")
        axes.plot([one.low, one.high], [place, place], color=colour, lw=1.5)
        axes.plot([one.mean], [place], marker="o", ms=4, color=colour, mfc="white" if name in bounds else colour)
    if BARE in found:
        axes.axvline(found[BARE].mean, color="black", lw=0.5, ls=":")
    axes.set_yticks(range(len(names)), [f"{name} *" if name in bounds else name for name in names], fontsize=7)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name in (AUTO, BARE) else "normal")
    axes.set(xlabel=f"quality with 95% interval, {cell} (* is told which passages are gold)", xlim=(-0.02, 1.02))
    axes.xaxis.label.set_size(7)
    return _png(figure)


def _by_count(evaluation: Evaluation) -> bytes | None:
    plain = {cell: re.fullmatch(r"n=(\d+)(, noise=[\d.]+)?", cell) for cell in evaluation.cells}
    tail = re.sub(r"^n=\d+", "", evaluation.main_cell)
    cells = {int(found[1]): cell for cell, found in plain.items() if found and (found[2] or "") == tail}
    if len(cells) < 2:
        return None
    figure, axes = _canvas()
    for method in _LINES:
        points = [(n, evaluation.interval(cell, method)) for n, cell in sorted(cells.items())]
        points = [(n, interval) for n, interval in points if interval.n]
        if points:
            line = axes.plot([n for n, _ in points], [one.mean for _, one in points], marker="o", ms=3, label=method)
            axes.fill_between(
                [n for n, _ in points], [one.low for _, one in points], [one.high for _, one in points],
                color=line[0].get_color(), alpha=0.12,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(sorted(cells), [str(n) for n in sorted(cells)])
    axes.minorticks_off()
    axes.set(xlabel="passages", ylabel="quality", ylim=(0, 1))
    axes.legend(fontsize=7)
    return _png(figure)


def _by_position(evaluation: Evaluation) -> bytes | None:
    places = ("first", "middle", "last")
    cells = {place: next((one for one in evaluation.cells if one.endswith(f"gold {place}")), None) for place in places}
    if not any(cells.values()):
        return None
    figure, axes = _canvas()
    for method in _LINES:
        points = [
            (place, evaluation.interval(cell, method).mean)
            for place, cell in cells.items()
            if cell and evaluation.interval(cell, method).n
        ]
        if points:
            axes.plot([place for place, _ in points], [mean for _, mean in points], marker="o", ms=3, label=method)
    axes.set(xlabel="gold passage", ylabel="quality", ylim=(0, 1))
    axes.legend(fontsize=7)
    return _png(figure)


def _by_alpha(evaluation: Evaluation) -> bytes | None:
    cell = evaluation.main_cell
    points = [(float(name[6:]), evaluation.interval(cell, name)) for name in evaluation.alpha_methods]
    bare = evaluation.interval(cell, BARE)
    points = sorted([*([(0.0, bare)] if bare.n else []), *[one for one in points if one[1].n]], key=lambda one: one[0])
    if len(points) < 3:
        return None
    figure, axes = _canvas()
    axes.errorbar(
        [alpha for alpha, _ in points],
        [one.mean for _, one in points],
        yerr=[[one.mean - one.low for _, one in points], [one.high - one.mean for _, one in points]],
        marker="o", ms=3, capsize=2, label="fixed",
    )  # fmt: skip
    auto, alpha = evaluation.interval(cell, DIRECTIONS), evaluation.mean(cell, DIRECTIONS, "alpha")
    if auto.n and alpha is not None:
        axes.plot([alpha], [auto.mean], marker="*", ms=12, ls="none", label="by retrieval (at its mean)")
    axes.set(xlabel="alpha", ylabel="quality", title=cell)
    axes.legend(fontsize=7)
    return _png(figure)


def _head_map(evaluation: Evaluation) -> bytes | None:
    profile = evaluation.run.get("profile")
    if not profile:
        return None
    heads: Sequence[Sequence[Any]] = profile["heads"]
    figure, axes = _canvas()
    drawn = axes.scatter(
        [layer for layer, _, _ in heads],
        [head for _, head, _ in heads],
        c=[score if score is not None else 0.0 for _, _, score in heads],
        s=60, cmap="viridis", vmin=0,
    )  # fmt: skip
    figure.colorbar(drawn, label="contextual score (mass on gold)")
    axes.set(xlabel="layer", ylabel="query head")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return _png(figure)


def _regret(evaluation: Evaluation) -> bytes | None:
    if not evaluation.alpha_methods or DIRECTIONS not in evaluation.methods:
        return None
    figure, axes = _canvas()
    fixed = [BARE, *(one for one in evaluation.alpha_methods if float(one[6:]) > 0)]
    rows = []
    for cell in evaluation.cells:
        # Paired: methods may have answered different questions.
        ahead = [one.mean for name in fixed if (one := evaluation.difference(cell, name, DIRECTIONS)).n]
        rows.append((cell, max(ahead, default=0.0), evaluation.difference(cell, BEST_OF_ALPHAS, DIRECTIONS).mean))
    places = range(len(rows))
    axes.barh(
        [place + 0.2 for place in places], [one for _, one, _ in rows], height=0.38, label="best alpha of the cell"
    )
    axes.barh(
        [place - 0.2 for place in places], [one for _, _, one in rows], height=0.38, label="best alpha of each question"
    )
    axes.set_yticks(list(places), [cell for cell, _, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="quality that alpha by retrieval leaves on the table, against")
    axes.legend(fontsize=7)
    return _png(figure)


def _passages(evaluation: Evaluation, questions: int = 3) -> bytes | None:
    """Attention by passage, bare and auto, for the first questions where the answers differ (else the first ones)."""
    bare, auto = (evaluation.answers(evaluation.main_cell, name) for name in (BARE, AUTO))
    both = [key for key in bare if key in auto and bare[key]["shares"] and auto[key]["shares"]]
    both.sort(key=lambda key: bare[key]["text"] == auto[key]["text"])
    if not both:
        return None
    figure, axes = _canvas(rows=min(questions, len(both)))
    for panel, key in zip(axes if hasattr(axes, "__len__") else [axes], both, strict=False):
        gold, n = set(bare[key]["gold"]), len(bare[key]["shares"])
        for offset, name, record in ((-0.2, BARE, bare[key]), (0.2, AUTO, auto[key])):
            panel.bar(
                [place + offset for place in range(n)],
                record["shares"],
                width=0.38,
                label=f"{name}: {_shown(record['text'], 40)}",
            )
        panel.set_xticks(range(n), [f"{place + 1}{'*' if place in gold else ''}" for place in range(n)], fontsize=7)
        panel.set_title(_shown(bare[key]["question"], 70), fontsize=8)
        panel.legend(fontsize=6)
    figure.supxlabel("passage (* gold)", fontsize=8)
    figure.supylabel("share of passage attention", fontsize=8)
    return _png(figure)


def _canvas(rows: int = 1, height: float | None = None) -> tuple[Any, Any]:
    # The object interface: pyplot keeps figures alive and picks a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, height or (3.6 if rows == 1 else 2.0 * rows)), layout="constrained")
    return figure, figure.subplots(rows)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _shown(text: str, width: int) -> str:
    """The start of a text, without what no font can draw and what would be read as a formula."""
    return "".join(letter for letter in text if letter.isprintable() and letter != "$")[:width]
