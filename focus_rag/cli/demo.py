"""`focus-rag demo`: the documents and questions that come with the package, bare and focused side by side."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from focus_rag.cli.loading import DeviceOption, JsonOption, ModelOption, ProfileOption, load_generator
from focus_rag.cli.output import progress, shorten, write_json, write_table
from focus_rag.errors import DocumentError, InvalidInputError
from focus_rag.examples import holds_answer

if TYPE_CHECKING:
    from focus_rag.generator import FocusGenerator
    from focus_rag.passages import Passage

_PER_BATCH = 4
_MAX_NEW_TOKENS = 32
_WIDTH = 34
_WAYS: tuple[tuple[float | Literal["auto"], Literal["auto", "off"]], ...] = (
    (0.0, "off"),
    ("auto", "off"),
    ("auto", "auto"),
)
"""Alpha and split: bare, with directions alone, and as the profile sets both."""


@dataclass(frozen=True, slots=True)
class _Question:
    question: str
    answers: tuple[str, ...]
    document: str | None


@dataclass(frozen=True, slots=True)
class _Outcome:
    asked: _Question
    bare: str
    directions: str
    alpha: float
    focused: str
    favoured: int
    retrieved: bool

    @property
    def bare_is_right(self) -> bool:
        return holds_answer(self.bare, self.asked.answers)

    @property
    def directions_are_right(self) -> bool:
        return holds_answer(self.directions, self.asked.answers)

    @property
    def focused_is_right(self) -> bool:
        return holds_answer(self.focused, self.asked.answers)


def command(
    questions: Annotated[
        int | None, typer.Option("--questions", help="How many of the questions to ask; default: all.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Passages to retrieve for each.")] = 20,
    model: ModelOption = None,
    profile: ProfileOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask bundled questions over bundled documents: bare, with focus directions alone, and focused as the profile sets
    it.

    Example: focus-rag demo --questions 10
    """
    if top_k < 1 or (questions is not None and questions < 1):
        raise InvalidInputError("--questions and --top-k must be at least 1.")
    from focus_rag.embedded import demo_folder

    started = time.perf_counter()
    folder = demo_folder()
    asked = read_questions(folder / "questions.jsonl")[:questions]
    found = _retrieve(folder, asked, top_k)
    generator = load_generator(model, profile, device)
    outcomes = _answer(generator, asked, found)
    report = _report(outcomes, generator.model_name, top_k, time.perf_counter() - started)
    if as_json:
        write_json({**report, "questions": [_record(outcome) for outcome in outcomes]})
    else:
        _show(outcomes, report)


def read_questions(path: Path) -> list[_Question]:
    """Questions, one JSON object with `question` and `answers` (and perhaps `document`) on each line.

    Raises:
        DocumentError: The file is missing, empty or holds something else.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        asked = [_Question(str(row["question"]), tuple(row["answers"]), row.get("document")) for row in rows]
    except OSError as error:
        raise DocumentError(f"The demo's questions cannot be read: {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DocumentError(f"{path} must hold one JSON object with question and answers a line: {error}.") from error
    if not asked:
        raise DocumentError(f"{path} holds no questions.")
    return asked


def _retrieve(documents: Path, asked: list[_Question], top_k: int) -> list[list[Passage]]:
    with progress() as bar:
        bar.add_task("indexing the documents", total=None)
        from focus_rag.search.passage_index import PassageIndex

        index = PassageIndex.from_folder(documents)
        return [index.search(question.question, top_k) for question in asked]


def _answer(generator: FocusGenerator, asked: list[_Question], found: list[list[Passage]]) -> list[_Outcome]:
    from focus_rag.answers import Request

    settings = generator.settings.changed({"max_new_tokens": _MAX_NEW_TOKENS})
    outcomes: list[_Outcome] = []
    with progress() as bar:
        task = bar.add_task("asking, bare and focused", total=len(asked))
        for start in range(0, len(asked), _PER_BATCH):
            rows = list(zip(asked[start : start + _PER_BATCH], found[start : start + _PER_BATCH], strict=True))
            requests = [
                Request(
                    question=one.question,
                    passages=passages,
                    alpha=alpha,
                    split=split,
                    score_kind="cosine",
                    settings=settings,
                )
                for one, passages in rows
                for alpha, split in _WAYS
            ]
            answers = generator.answer_batch(requests)
            of_each = (answers[place :: len(_WAYS)] for place in range(len(_WAYS)))
            for (one, passages), bare, directions, focused in zip(rows, *of_each, strict=True):
                retrieved = any(holds_answer(passage.content, one.answers) for passage in passages)
                favoured = sum(use.favoured for use in focused.passages)
                outcomes.append(
                    _Outcome(one, bare.text, directions.text, directions.alpha, focused.text, favoured, retrieved)
                )
            bar.advance(task, len(rows))
    return outcomes


def _report(outcomes: list[_Outcome], model: str, top_k: int, seconds: float) -> dict[str, Any]:
    return {
        "model": model,
        "n": len(outcomes),
        "top_k": top_k,
        "retrieved": sum(outcome.retrieved for outcome in outcomes),
        "bare": sum(outcome.bare_is_right for outcome in outcomes),
        "directions": sum(outcome.directions_are_right for outcome in outcomes),
        "focused": sum(outcome.focused_is_right for outcome in outcomes),
        "only_focused": sum(outcome.focused_is_right and not outcome.bare_is_right for outcome in outcomes),
        "only_bare": sum(outcome.bare_is_right and not outcome.focused_is_right for outcome in outcomes),
        "mean_alpha": sum(outcome.alpha for outcome in outcomes) / len(outcomes),
        "mean_favoured": sum(outcome.favoured for outcome in outcomes) / len(outcomes),
        "seconds": round(seconds, 1),
    }


def _record(outcome: _Outcome) -> dict[str, Any]:
    return {
        "question": outcome.asked.question,
        "answers": list(outcome.asked.answers),
        "document": outcome.asked.document,
        "bare": outcome.bare,
        "bare_is_right": outcome.bare_is_right,
        "directions": outcome.directions,
        "directions_are_right": outcome.directions_are_right,
        "alpha": outcome.alpha,
        "focused": outcome.focused,
        "focused_is_right": outcome.focused_is_right,
        "favoured": outcome.favoured,
        "answer_was_retrieved": outcome.retrieved,
    }


def _show(outcomes: list[_Outcome], report: dict[str, Any]) -> None:
    write_table(
        ["question", "expected", "bare", "directions", "focused"],
        [
            [
                shorten(outcome.asked.question, 2 * _WIDTH),
                shorten(min(outcome.asked.answers, key=len, default=""), _WIDTH),
                _marked(outcome.asked, outcome.bare, outcome.bare_is_right),
                _marked(outcome.asked, outcome.directions, outcome.directions_are_right),
                _marked(outcome.asked, outcome.focused, outcome.focused_is_right),
            ]
            for outcome in outcomes
        ],
    )
    n = report["n"]
    typer.echo(f"{report['model']}, {n} questions, {report['top_k']} passages each, {report['seconds']} s")
    typer.echo(f"answer among the passages  {report['retrieved']}/{n}")
    typer.echo(f"bare model right           {report['bare']}/{n}")
    typer.echo(f"directions alone right     {report['directions']}/{n}   (alpha {report['mean_alpha']:.3g} on average)")
    leaning = (
        f"   (split softmax on {report['mean_favoured']:.1f} passages on average)" if report["mean_favoured"] else ""
    )
    typer.echo(f"focused model right        {report['focused']}/{n}{leaning}")
    typer.echo(f"right only focused {report['only_focused']}, right only bare {report['only_bare']}")


def _marked(asked: _Question, text: str, right: bool) -> str:
    """The answer; where it begins like the accepted sentence up to its "is", only what comes after."""
    words, wanted = text.split(" "), asked.answers[0].split(" ") if len(asked.answers) > 1 else []
    alike = next(
        (i for i, pair in enumerate(zip(words, wanted, strict=False)) if pair[0] != pair[1]),
        min(len(words), len(wanted)),
    )
    lead = max((i + 1 for i, word in enumerate(wanted[:alike]) if word == "is"), default=0)
    rest = " ".join(["…", *words[lead:]]) if lead else text
    return f"{'✓' if right else '✗'} {shorten(rest, _WIDTH)}"
