"""The pictures of a fit's report: where heads look, quality against alpha and passage count, the fitted policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focus_rag.fitting.head_scoring import PARTS, HeadScores
from focus_rag.passages import RetrievalSignal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from focus_rag.profile import FocusProfile

_DPI = 80


def write_pictures(folder: Path, profile: FocusProfile, figures: dict[str, Any]) -> None:
    """Write the PNGs of a report.

    Args:
        folder: The profile's folder.
        profile: The fitted profile.
        figures: What was measured, in plain JSON types.
    """
    present = [sweep for sweep in figures["sweeps"] if not sweep["gold_missing"]]
    if "scores" in figures:
        scores = HeadScores.from_dict(figures["scores"])
        _save(folder / "heads.png", lambda axes: _draw_heads(axes, scores, figures["heads"]))
    else:  # that of an earlier fit into the same folder would show other heads
        (folder / "heads.png").unlink(missing_ok=True)
    _save(folder / "mass.png", lambda axes: _draw_activation(axes, figures["activation"]))
    _save(folder / "alpha.png", *_by_noise(present, _draw_sweeps))
    _save(folder / "quality.png", *_by_noise(figures["cells"], _draw_cells))
    _save(folder / "surface.png", lambda axes: _draw_surface(axes, profile))


def _save(file: Path, *draw: Callable[[Axes], None]) -> None:
    """One picture with one part per drawing, side by side, on a common scale of quality or whatever they share."""
    # The object interface: pyplot would keep state and could pick a backend that wants a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 4.0 * len(draw), 3.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for one, axes in zip(draw, figure.subplots(1, len(draw), sharey=True, squeeze=False)[0], strict=True):
        one(axes)
    figure.savefig(file, metadata={"Software": None})


def _by_noise(
    cells: Sequence[dict[str, Any]], draw: Callable[[Sequence[dict[str, Any]], str, Axes], None]
) -> list[Callable[[Axes], None]]:
    """One drawing for each noise, the noisiest first."""
    return [
        partial(draw, [cell for cell in cells if cell["noise"] == noise], _noise_in_words(noise))
        for noise in sorted({cell["noise"] for cell in cells}, reverse=True)
    ]


def _noise_in_words(noise: float) -> str:
    return "as retrieved" if noise == 1 else f"noise {noise:g}"


def _draw_heads(axes: Axes, scores: HeadScores, heads: Sequence[Sequence[int]]) -> None:
    image = axes.imshow(scores.gold.tolist(), aspect="auto", origin="lower", cmap="viridis", vmin=0)
    axes.scatter(
        [head for _, head in heads],
        [layer for layer, _ in heads],
        marker="o",
        facecolors="none",
        edgecolors="red",
        s=40,
    )
    axes.set(xlabel="head", ylabel="layer", title="mass on gold (circled: steered)")
    axes.locator_params(integer=True)
    axes.figure.colorbar(image, ax=axes)


def _draw_activation(axes: Axes, rows: Sequence[dict[str, float]]) -> None:
    alphas = [row["alpha"] for row in rows]
    for part in PARTS:
        axes.plot(alphas, [row[part] for row in rows], marker=".", label=part.replace("_", " "))
    axes.set(xlabel="alpha", ylabel="attention mass", ylim=(-0.02, 1.02), title="where the steered heads look")
    axes.legend(fontsize=7)


def _draw_sweeps(cells: Sequence[dict[str, Any]], where: str, axes: Axes) -> None:
    for cell in cells:
        _draw_estimates(axes, cell["alphas"], cell["quality"], f"{cell['count']} passages")
    axes.set(xlabel="alpha", ylabel="quality", ylim=(0, 1.02), title=f"quality against alpha, {where}")
    axes.legend(fontsize=7)


def _draw_cells(cells: Sequence[dict[str, Any]], where: str, axes: Axes) -> None:
    counts = [cell["count"] for cell in cells]
    for name, label in (
        ("bare", "bare"),
        ("auto", "auto alpha"),
        ("at_best_single", "best single alpha"),
        ("gold_only", "gold only"),
    ):
        _draw_estimates(axes, counts, [cell[name] for cell in cells], label)
    axes.set(
        xlabel="passages", ylabel="quality", ylim=(0, 1.02), xticks=counts, title=f"quality against passages, {where}"
    )
    axes.legend(fontsize=7)


def _draw_estimates(axes: Axes, places: Sequence[float], estimates: Sequence[dict[str, float]], label: str) -> None:
    means = [one["mean"] for one in estimates]
    ends = [[one["mean"] - one["low"] for one in estimates], [one["high"] - one["mean"] for one in estimates]]
    axes.errorbar(places, means, yerr=ends, capsize=2, marker=".", label=label)


def _draw_surface(axes: Axes, profile: FocusProfile) -> None:
    counts, noises = list(range(1, 41)), [step / 20 for step in range(21)]
    surface = [
        [profile.policy.choose(RetrievalSignal(count, noise, "given", "plot")).alpha for count in counts]
        for noise in noises
    ]
    image = axes.imshow(
        surface,
        aspect="auto",
        origin="lower",
        extent=(0.5, 40.5, -0.025, 1.025),
        cmap="magma",
        vmin=0,
        vmax=max(map(max, surface)) or 1,
    )
    axes.set(xlabel="passages", ylabel="noise, as the retrieval tells it", title="alpha of the policy")
    axes.figure.colorbar(image, ax=axes)
