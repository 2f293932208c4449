"""The report of an evaluation: `report.md`, `report.html` (one file that loads nothing), `summary.json` and PNG
pictures.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from focus_rag.evaluation.pictures import BY_COUNT, EVERY_METHOD, pictures
from focus_rag.evaluation.results import AUTO, BARE, RANDOM_HEADS, THRESHOLDS, Evaluation
from focus_rag.evaluation.statistics import Difference
from focus_rag.fitting.grading import Grading
from focus_rag.json_files import finite

Table = tuple[list[str], list[list[str]]]

_QUALITY: dict[Grading, str] = {"exact": "exact match", "contains": "lost-in-the-middle substring match"}

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1rem;overflow-wrap:anywhere}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}
.verdict{font-size:1.05rem;padding:.75rem 1rem .75rem 2rem;margin:1rem 0;
 border-left:4px solid #2a7de1;background:#2a7de11a}
.verdict li{margin:.3rem 0}
.fine{font-size:.85rem;opacity:.8}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;border-bottom:1px solid #8884;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:Canvas}
tr.auto td{font-weight:600}
@media(max-width:480px){th,td{padding:.25rem .4rem}
 th:first-child,td:first-child{min-width:6.5rem;white-space:normal;overflow-wrap:normal}}
img{max-width:100%;height:auto;background:#fff;border-radius:4px}
dt{font-weight:600}dd{margin:0 0 .5rem 0}
"""


def write_report(evaluation: Evaluation, out: str | Path) -> Path:
    """Write all files of the report and return the HTML one."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures(evaluation)
    names = {title: f"{re.sub(r'[^a-z0-9]+', '_', title.lower())}.png" for title in drawn}
    for title, picture in drawn.items():
        (folder / names[title]).write_bytes(picture)
    summary = json.dumps(finite(evaluation.summary()), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    (folder / "summary.json").write_text(summary, encoding="utf-8")
    sections = _sections(evaluation)
    (folder / "report.md").write_text(_markdown(evaluation, sections, names), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(_html(evaluation, sections, drawn), encoding="utf-8")
    return page


def _sections(evaluation: Evaluation) -> list[tuple[str, str, Table]]:
    """Title, a sentence, and a table for each section."""
    main = evaluation.main_cell
    found = [
        (
            f"Main cell: {main}",
            f"Quality is the {_QUALITY[evaluation.run['grading']]}, and where no passage holds the answer, saying "
            "so. Brackets are 95% bootstrap intervals; differences are paired on the same questions. A question "
            "that the data holds several times counts once, with its mean. Methods marked * are told which passages "
            "are gold. Recovered is the share of the gap from bare to gold-only.",
            _main_table(evaluation, main),
        ),
        (
            "Auto alpha against what else could be done",
            f"Quality of auto minus the other's in points, paired on the questions that both answered, {main}.",
            _against(evaluation, main),
        ),
        (
            "Quality in every cell",
            "Means; the intervals are in summary.json. Where a method answered fewer of the questions, n says how "
            "many.",
            _cells_table(evaluation),
        ),
    ]
    told = {method: figures for method in evaluation.methods if "auroc" in (figures := evaluation.telling(method))}
    if told:
        found.append(
            (
                "How likely an answer is right",
                "Answers of all cells but those that say nothing is stated. The area is how often a right answer "
                "gets a higher confidence than a wrong one; below: right and wrong answers whose confidence is "
                "lower, in percent.",
                _confidence_table(told),
            )
        )
    if evaluation.choices:
        rows = [
            [
                name,
                made["chosen"],
                str(made["questions"]),
                ", ".join(f"{one}: {_share(mean)}" for one, mean in made["on_dev"].items()),
            ]
            for name, made in evaluation.choices.items()
        ]
        found.append(("Chosen on dev questions", "", (["method", "chosen", "n", "quality on dev"], rows)))
    if evaluation.speed:
        found.append(
            (
                "Speed, one question at a time",
                "Medians. The span rivals recompute attention weights outside the fused kernel, which a tuned "
                "version need not. Memory is the peak above what the process held before the method ran.",
                _speed_table(evaluation),
            )
        )
    return [section for section in found if section[2][1]]


def _main_table(evaluation: Evaluation, cell: str) -> Table:
    columns = [
        "method", "n", "quality", "against bare", "p", "recovered", "EM", "substring", "F1", "ROUGE-L", "abstained",
        "wrong", "source",
        "gold mass", "sink mass", "alpha",
    ]  # fmt: skip
    names = (
        "exact_match", "substring_match", "token_f1", "rouge_l", "abstained", "wrong_answer", "source_correct",
        "gold_mass", "sink_mass",
    )  # fmt: skip
    rows = []
    for method in evaluation.reported_methods:
        interval = evaluation.interval(cell, method)
        if not interval.n:
            continue
        difference = evaluation.difference(cell, method, BARE)
        is_alone = method == BARE or not difference.n
        recovered, alpha = evaluation.recovered(cell, method), evaluation.mean(cell, method, "alpha")
        rows.append(
            [
                _marked(evaluation, method),
                str(interval.n),
                f"{_share(interval.mean)} [{_share(interval.low)}, {_share(interval.high)}]",
                "" if is_alone else _difference(difference),
                "" if is_alone else _p(difference.p),
                "" if recovered is None else f"{recovered:.0%}",
                *(_share(evaluation.mean(cell, method, name)) for name in names),
                f"{alpha:.2f}" if alpha else "",
            ]
        )
    # What was not measured for any method says nothing.
    kept = [place for place, _ in enumerate(columns) if any(row[place] for row in rows)]
    return [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _against(evaluation: Evaluation, cell: str) -> Table:
    rows = []
    for rival in evaluation.compared_with_auto:
        difference = evaluation.difference(cell, AUTO, rival)
        if difference.n:
            told = "auto better" if difference.is_better else "auto worse" if difference.is_worse else "not told apart"
            rows.append([rival, str(difference.n), _difference(difference), _p(difference.p), told])
    return ["auto minus", "n", "difference", "p", "at 95%"], rows


def verdict(evaluation: Evaluation) -> list[str]:
    """What came out in the headline cell, in a few sentences, whoever won."""
    cell = evaluation.main_cell
    bare, auto = evaluation.interval(cell, BARE), evaluation.interval(cell, AUTO)
    if not bare.n or not auto.n:
        return []
    gain, recovered = evaluation.difference(cell, AUTO, BARE), evaluation.recovered(cell, AUTO)
    lines = [
        f"{cell}: auto is right in {_share(auto.mean)}%, the bare model in {_share(bare.mean)}%: {_difference(gain)} "
        f"points, paired on {gain.n} "
        f"questions{'' if recovered is None else f'; {recovered:.0%} of the way to the gold passages alone'}."
    ]
    others = [name for name in evaluation.compared_with_auto if name not in (BARE, RANDOM_HEADS)]
    compared = {name: one for name in others if (one := evaluation.difference(cell, AUTO, name)).n}
    if compared:
        best = min(compared, key=lambda name: compared[name].mean)
        better = [name for name, one in compared.items() if one.is_worse]
        lines += [
            f"The strongest alternative is {best}: auto minus it is {_difference(compared[best])} points (n = "
            f"{compared[best].n}).",
            f"Against auto: better than it at 95% {'are' if len(better) > 1 else 'is'} {', '.join(better)}."
            if better
            else f"No alternative of {len(compared)} is better than auto at 95%.",
        ]
    worse = [one for one in evaluation.cells if evaluation.difference(one, AUTO, BARE).is_worse]
    lines.append(
        f"Against auto: worse than the bare model at 95% in {'; '.join(worse)}."
        if worse
        else f"In none of {len(evaluation.cells)} cells is auto worse than the bare model at 95%."
    )
    return lines


def _marked(evaluation: Evaluation, method: str) -> str:
    return f"{method} *" if method in evaluation.bounds else method


def _cells_table(evaluation: Evaluation) -> Table:
    most = {cell: evaluation.most_questions(cell) for cell in evaluation.cells}

    def shown(cell: str, method: str) -> str:
        interval = evaluation.interval(cell, method)
        return _share(interval.mean) + (f" (n={interval.n})" if 0 < interval.n < most[cell] else "")

    rows = [
        [_marked(evaluation, method), *(shown(cell, method) for cell in evaluation.cells)]
        for method in evaluation.reported_methods
    ]
    counts = ["questions", *(str(n) for n in most.values())]
    return ["method", *evaluation.cells], [counts, *rows]


def _confidence_table(told: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for method, figures in told.items():
        area = figures["auroc"]
        shares = [f"{_share(right)}, {_share(wrong)}" for right, wrong in figures["below"].values()]
        rows.append(
            [
                method,
                str(figures["answers"]),
                str(figures["right"]),
                f"{_share(area['mean'])} [{_share(area['low'])}, {_share(area['high'])}]",
                *shares,
            ]
        )
    return ["method", "answers", "right", "area", *(f"below {limit:g}" for limit in THRESHOLDS)], rows


def _speed_table(evaluation: Evaluation) -> Table:
    columns = ["method", "first token (s)", "tokens/s", "answer (s)", "memory (MiB)"]
    names = ("first_token_seconds", "tokens_per_second", "seconds", "peak_memory_mib")
    formats = ("{:.3f}", "{:.0f}", "{:.3f}", "{:.0f}")
    rows = [
        [method, *(f.format(values[name]) if name in values else "" for name, f in zip(names, formats, strict=True))]
        for method, values in evaluation.speed.items()
    ]
    return columns, rows


def _intro(evaluation: Evaluation) -> list[str]:
    run = evaluation.run
    profile = run.get("profile")
    heads = f"{len(profile['heads'])} contextual heads, site {profile['site']}" if profile else "no profile"
    kept = f" ({run['dev_data']} is kept for that)" if run["dev_data"] else ""
    tuned = f"tuned methods were chosen on {run['dev_data']}" if evaluation.choices else f"no method was tuned{kept}"
    lines = [
        f"Model {run['model']} ({run['dtype'].removeprefix('torch.')}), {heads}. Data: {run['data']}; {tuned}.",
        f"Seed {run['settings']['seed']}; at most {run['settings']['max_new_tokens']} new tokens, greedy.",
    ]
    if run.get("left_out"):
        lines.append("Left out: " + "; ".join(f"{reason} ({n})" for reason, n in run["left_out"].items()) + ".")
    lines += [f"Not run: {name} ({why})." for name, why in evaluation.skipped.items()]
    return lines


def _markdown(evaluation: Evaluation, sections: Sequence[tuple[str, str, Table]], names: dict[str, str]) -> str:
    parts = ["# Evaluation", "\n".join(f"- {line}" for line in verdict(evaluation)), *_intro(evaluation)]
    for title, text, (columns, rows) in sections:
        lines = [_row(columns), _row(["---"] + ["---:"] * (len(columns) - 1)), *(_row(row) for row in rows)]
        parts += [f"## {title}", *([text] if text else []), "\n".join(lines)]
    parts += [f"## {title}\n\n![{title}]({name})" for title, name in names.items()]
    parts += ["## Methods", "\n".join(f"- **{name}**: {note}" for name, note in evaluation.notes.items())]
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _html(evaluation: Evaluation, sections: Sequence[tuple[str, str, Table]], drawn: dict[str, bytes]) -> str:
    said = "".join(f"<li>{html.escape(line)}</li>" for line in verdict(evaluation))
    parts = ["<h1>Evaluation</h1>", f'<ul class="verdict">{said}</ul>' if said else ""]
    drawn = dict(drawn)
    parts += [_picture(title, drawn.pop(title)) for title in (EVERY_METHOD, BY_COUNT) if title in drawn]
    parts += [f'<p class="fine">{html.escape(line)}</p>' for line in _intro(evaluation)]
    for title, text, (columns, rows) in sections:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in columns)
        body = "".join(
            ('<tr class="auto">' if row[0] == AUTO else "<tr>")
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in rows
        )
        parts += [
            f"<h2>{html.escape(title)}</h2>",
            f"<p>{html.escape(text)}</p>" if text else "",
            f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>",
        ]
    parts += [_picture(title, picture) for title, picture in drawn.items()]
    notes = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(note)}</dd>" for name, note in evaluation.notes.items()
    )
    parts.append(f"<h2>Methods</h2><dl>{notes}</dl>")
    # An icon of its own: without one a browser asks the server for it.
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>focus_rag evaluation</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _picture(title: str, picture: bytes) -> str:
    data = base64.b64encode(picture).decode()
    return f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


def _share(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _difference(difference: Difference) -> str:
    return f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
