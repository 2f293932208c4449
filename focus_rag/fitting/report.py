"""The report of a fit: `report.md` for people, `report.json` for programs, and small PNGs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focus_rag.fitting.head_scoring import PARTS, HeadScores
from focus_rag.fitting.report_pictures import write_pictures

if TYPE_CHECKING:
    from focus_rag.profile import FocusProfile
    from focus_rag.score_split import ScoreSplit

_HEADS_SHOWN = 12
_QUALITY = {
    "exact": "are an accepted answer and nothing else",
    "contains": "hold an accepted answer",
}


def write_report(folder: Path, profile: FocusProfile, figures: dict[str, Any]) -> None:
    """Write the report of a fit into the profile's folder.

    Args:
        folder: The profile's folder; made if it is not there.
        profile: The fitted profile.
        figures: What was measured, in plain JSON types.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_pictures(folder, profile, figures)
    (folder / "report.md").write_text(_text(profile, figures), encoding="utf-8")


def _text(profile: FocusProfile, figures: dict[str, Any]) -> str:
    examples = figures["examples"]
    skipped = "; ".join(f"{reason}: {count}" for reason, count in examples["skipped"].items()) or "none"
    trained = f", loss `{figures['loss']}`" if "loss" in figures else ""
    parts = [
        f"# Focus profile of {profile.fingerprint.model_id}",
        f"{len(profile.heads)} contextual heads, directions at site "
        f"`{figures['site']}`{trained}{_standing(figures)}. Fitted on {examples['train']} training and "
        f"{examples['dev']} dev questions of {examples['source']} (left out: {skipped}). "
        f"{_answerable(examples)}Everything below is measured on dev questions, which it was all chosen on: it is "
        f"not a test. Intervals are 95%; quality is the share of answers that {_QUALITY[figures['grading']]}.",
        *(f"**Warning.** {warning}" for warning in figures["warnings"]),
        "## Quality",
        "Noise is the share of the distractors that are as retrieved; the others were exchanged for passages of "
        "other questions. `auto` is the fitted policy, alpha for each question by its retrieval; `best single` is "
        f"the one alpha that serves all rows best on these questions ({figures['best_single']:g}). `alpha` is the "
        "mean alpha of auto.",
        _table(
            [
                "passages",
                "noise",
                "n",
                "bare",
                "auto",
                "best single",
                "gold only",
                "alpha",
                "gain of auto",
                "regret of auto",
                "regret of bare",
            ],
            [
                [
                    cell["count"],
                    f"{cell['noise']:g}",
                    cell["questions"],
                    _share(cell["bare"]),
                    _share(cell["auto"]),
                    _share(cell["at_best_single"]),
                    _share(cell["gold_only"]),
                    f"{cell['auto_alpha']:.2f}",
                    _share(cell["auto_gain"]),
                    f"{100 * cell['regret']:.1f}",
                    f"{100 * cell['regret_bare']:.1f}",
                ]
                for cell in figures["cells"]
            ],
        ),
        _in_words(figures),
        "![quality](quality.png) ![alpha](alpha.png)",
        "## What the retrieval tells",
        "Mean alpha and quality of the policy on the same questions under other signals, read off the sweep between "
        "its alphas.",
        _table(
            [
                "passages",
                "noise",
                *(f"{name}: {what}" for name in figures["cells"][0]["signals"] for what in ("alpha", "quality")),
            ],
            [
                [
                    cell["count"],
                    f"{cell['noise']:g}",
                    *(
                        text
                        for one in cell["signals"].values()
                        for text in (f"{one['alpha']:.2f}", _share(one["quality"]))
                    ),
                ]
                for cell in figures["cells"]
            ],
        ),
        "## Quality against alpha",
        _sweep_table([sweep for sweep in figures["sweeps"] if not sweep["gold_missing"]]),
        "Gold passages taken away; the right answer is that it is not stated:",
        _sweep_table([sweep for sweep in figures["sweeps"] if sweep["gold_missing"]]),
        "## Passage order",
        f"{figures['order']['shuffled']['gain']['n']} questions at the largest count, focused whatever their order. "
        "What is gained as retrieved and not shuffled is the retriever's order, learned.",
        _table(
            ["order", "bare", "auto", "gain of auto"],
            [
                [name, *(_share(row[what]) for what in ("bare", "auto", "gain"))]
                for name, row in figures["order"].items()
            ],
        ),
        "## Split",
        *_split_section(figures["split"], profile.split),
        "## Confidence",
        _confidence_in_words(figures["confidence"]),
        *(_trained_sections(profile, figures) if "trainings" in figures else _taken_sections(profile)),
        "All heads steered at once, dev examples:",
        _table(
            ["alpha", *PARTS],
            [[f"{row['alpha']:g}", *(f"{row[part]:.3f}" for part in PARTS)] for row in figures["activation"]],
        ),
        "![mass](mass.png)",
        "## Policy",
        "Alpha by passage count and by noise as the retrieval of a request tells it, the expected share of "
        "irrelevant passages: not the noise of the tables above, which says what kind of passages the irrelevant "
        "ones are.",
        f"`{profile.policy.model_dump_json()}`",
        "![alpha surface](surface.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _trained_sections(profile: FocusProfile, figures: dict[str, Any]) -> list[str]:
    """How heads and directions were found, where the fit did that."""
    scores = HeadScores.from_dict(figures["scores"])
    oracle = figures["choice"]["oracle"]
    return [
        "## Choice of loss and heads",
        f"Mean over {_cells_in_words(figures['choice']['cells'])}; bare {_share(figures['choice']['bare'])}. Chosen, "
        f"by the lower limit of the gain: `{figures['choice']['chosen']}`. `random` heads are a control and never "
        "chosen. The oracle knows the gold passage and splits the softmax of as many contextual heads in its "
        "favour: what these heads could bring.",
        _table(
            ["variant", "heads", "alpha", "quality", "gain"],
            [
                *(
                    [row["variant"], row["heads"], f"{row['alpha']:g}", _share(row["quality"]), _share(row["gain"])]
                    for row in figures["choice"]["table"]
                ),
                *(
                    [f"oracle, tau {row['tau']:g}", oracle["heads"], "", _share(row["quality"]), _share(row["gain"])]
                    for row in oracle["table"]
                ),
            ],
        ),
        "## Heads",
        f"Attention mass while answering, bare model, {scores.examples} examples.",
        _table(
            ["layer", "head", *PARTS, "chosen"],
            [
                [
                    layer,
                    head,
                    *(f"{scores.of((layer, head), part):.3f}" for part in PARTS),
                    "yes" if (layer, head) in profile.head_pairs else "",
                ]
                for layer, head in scores.ranking()[:_HEADS_SHOWN]
            ],
        ),
        "![heads](heads.png)",
        "## Directions",
        _table(
            ["loss", "gold mass bare", "at alpha 1", "mean norm"],
            [
                [loss, f"{one['mass_before']:.3f}", f"{one['mass_after']:.3f}", f"{one['norm']:.2f}"]
                for loss, one in figures["trainings"].items()
            ],
        ),
        "Held-out training examples, every trained head by itself on what the bare model wrote.",
    ]


def _taken_sections(profile: FocusProfile) -> list[str]:
    """Whose heads and directions they are, where the fit took them as they were."""
    source = profile.provenance["directions"].get("source", "unknown")
    return [
        "## Heads",
        f"Heads and directions are those of another profile (source: {source}); only alpha and split were fitted here.",
        _table(
            ["layer", "head", "contextual score"],
            [
                [one.layer, one.head, "" if one.score is None else f"{one.score:.3f}"]
                for one in profile.heads[:_HEADS_SHOWN]
            ],
        ),
    ]


def _answerable(examples: dict[str, Any]) -> str:
    among = examples.get("answerable_among")
    return (
        ""
        if among is None
        else f"Dev questions are such, among {among}, as the model answers from their gold passages alone. "
    )


def _standing(figures: dict[str, Any]) -> str:
    at = figures["passages_at"]
    if at is not None:
        return f", for passages that begin at token {at} and turned where they begin elsewhere"
    if figures["site"] == "post_rope" and "loss" not in figures:
        return ", which act on absolute positions and are applied as they are"
    if figures["site"] == "post_rope":
        return ", tied to where passages begin in these prompts, because this model's RoPE could not be reproduced"
    return ""


def _cells_in_words(cells: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{count} passages{'' if noise == 1 else f' at noise {noise:g}'}" for count, noise in cells)


def _in_words(figures: dict[str, Any]) -> str:
    overall = figures["overall"]
    rest = (
        "Over all rows, regret against each question's own best alpha, which nobody knows beforehand: auto "
        f"{100 * overall['regret']:.1f} points, bare {100 * overall['regret_bare']:.1f}; some of it is luck."
    )
    helped = [str(cell["count"]) for cell in figures["cells"] if cell["noise"] == 1 and cell["alpha"]]
    if helped:
        return f"Alpha is above 0 at {', '.join(helped)} passages. {rest}"
    return (
        "No gain over the bare model could be told from chance, so the policy leaves the model as it is. "
        f"More dev questions narrow the intervals. {rest}"
    )


_BY = {
    "scores": "score",
    "words": "the words they share with the question",
    "both": "score and by the words they share with the question together",
}


def _split_section(figures: dict[str, Any], chosen: ScoreSplit | None) -> list[str]:
    """What leaning on the best passages brings."""
    if not figures["tried"]:
        return [
            "Not fitted: no split was to be tried, or neither scores nor shared words ever favour a gold passage of "
            "these questions."
        ]
    cells = [_cell_in_words(one) for one in figures["tried"][0]["cells"]]
    found = [
        "Contextual heads give the best passages the mass p ** tau, p being what they had: those within `reach` of "
        f"the range below the best, by {_BY[figures['tried'][0]['by']]}. `gain` is over the "
        "directions at the alpha of the policy, over all questions of the tables above, with the split acting from as "
        "many passages on as gain most (`from`). The columns show it acting among any number; `directions` is what "
        "directions alone reach. Chosen is the mildest split that is not told apart from the best, and that is not "
        "worse than bare, beyond the interval, where it acts.",
        _table(
            ["reach", "tau", "from", "gain", "worse than bare", *cells],
            [
                ["directions", "", "", "", "", *(_share(one["directions"]) for one in figures["tried"][0]["cells"])],
                *(
                    [
                        f"{row['reach']:g}",
                        f"{row['tau']:g}",
                        row["fewest"],
                        _share(row["gain"]),
                        ", ".join(row["loses"]),
                        *(_share(one["split"]) for one in row["cells"]),
                    ]
                    for row in figures["tried"]
                ),
            ],
        ),
    ]
    if chosen is None:
        return [*found, "No gain over the directions could be told from chance, so the profile leans on nothing."]
    by = {signal: _share(share) for signal, share in figures["finds_gold"].items()}
    found.append(
        f"Chosen: {chosen.in_words}. At the largest count as retrieved a gold passage is among those it favours for "
        f"{by[chosen.by]} of the questions (by scores {by['scores']}, by shared words {by['words']}, by both "
        f"{by['both']}): on a retrieval where it is much less often, fit anew."
    )
    if "shuffled_scores" not in figures:
        return found
    control, words = figures["shuffled_scores"], figures["without_scores"]
    return [
        *found,
        "Where scores say nothing (the largest count at noise 1, its scores dealt out anew) it answers "
        f"{_share(control['split'])}, bare {_share(control['bare'])} ({_share(control['gain'])}).",
        "Without any scores, on the passages that share most words with the question instead, it gains "
        f"{_share(words['gain'])} over the directions"
        + ("" if chosen.without_scores else ", which is not enough to do that")
        + (f"; worse than bare: {', '.join(words['loses'])}" if words["loses"] else "")
        + ":",
        _table(cells, [[_share(one["split"]) for one in words["cells"]]]),
    ]


def _confidence_in_words(figures: dict[str, Any]) -> str:
    told = (
        f"{figures['answers']} answers that do not say that nothing is stated, with the gold passages and "
        f"without them, {figures['right']} of them right"
    )
    if "auroc" not in figures:
        return f"{told}: too few right or wrong ones to fit how likely an answer is right."
    area, found = figures["auroc"], figures["found"]
    missing = (
        f"and by {found['missing']:.0%} of those whose gold passage was missing. The probability itself takes it to "
        f"be missing for {figures['missing_share']:.0%} of all questions."
        if found["missing"] is not None
        else (
            "and without its gold passage no answer was given, so the probability is that of questions whose "
            "gold passage is there."
        )
    )
    return (
        f"{told}. Of a right and a wrong answer to questions that it was not fitted on, the right one gets the "
        f"higher probability in {area['mean']:.0%} ({area['low']:.0%} to {area['high']:.0%}). A threshold that "
        f"{found['lost']:.0%} of the right answers do not reach is not reached by {found['wrong']:.0%} of the wrong "
        f"ones, {missing}"
    )


def _cell_in_words(cell: dict[str, Any]) -> str:
    return (
        f"{cell['passages']} passages, {'gold missing' if cell['gold_missing'] else 'noise {:g}'.format(cell['noise'])}"
    )


def _sweep_table(sweeps: Sequence[dict[str, Any]]) -> str:
    if not sweeps:
        return "(not measured)"
    alphas = sweeps[0]["alphas"]
    rows = [
        [sweep["count"], f"{sweep['noise']:g}", sweep["quality"][0]["n"], *(_share(one) for one in sweep["quality"])]
        for sweep in sweeps
    ]
    return _table(["passages", "noise", "n", *(f"alpha {alpha:g}" for alpha in alphas)], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _share(estimate: dict[str, float]) -> str:
    # One end may be the last that there is.
    half = max(estimate["mean"] - estimate["low"], estimate["high"] - estimate["mean"])
    return f"{100 * estimate['mean']:.1f} ± {100 * half:.1f}"
