"""Labelled questions to fit and evaluate on: reading, checking, counting what was left out, and splitting."""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from focus_rag.errors import InvalidInputError
from focus_rag.json_files import json_rows
from focus_rag.passage_ranking import best_passages, by_relevance
from focus_rag.passages import Passage
from focus_rag.score_order import ScoreKind, best_first, is_score_kind, orientation
from focus_rag.shared_words import signs_apart
from focus_rag.special_text import encodable

_SCHEMA = (
    '{"question": str, "answers": [str, ...], "score_kind"?: str, '
    '"passages": [{"text": str, "is_gold": bool, "title"?: str, "score"?: number}, ...]}'
)


def question_key(question: str) -> str:
    """A hash of a question, whatever its white space."""
    return hashlib.sha256(" ".join(question.split()).encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Example:
    """A question, what answers it, and what was retrieved for it.

    Attributes:
        question: The question.
        answers: Accepted answers; the first is the one to write.
        passages: In retrieval order.
        gold: Indices of the passages that hold the answer.
        score_kind: What the scores are, where known; passages that do not stand best or worst first need it to be told
            apart.
    """

    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...]
    gold: frozenset[int]
    score_kind: ScoreKind | None = None

    @property
    def key(self) -> str:
        """A hash of the question: the same wherever the example stands, so splits never depend on order."""
        return question_key(self.question)

    def best_first(self) -> list[int]:
        """Indices of the passages by their scores, the best first."""
        return best_first([passage.score for passage in self.passages], score_kind=self.score_kind)

    def by_relevance(self) -> list[int]:
        """Indices of the passages by scores and shared words together, the best first, as a generator drops them from
        the end.
        """
        return by_relevance(self.passages, self.question, score_kind=self.score_kind)

    def keep_best(self, keep: int) -> Example:
        """The same question with its best passages by scores and shared words, as `keep_best` of a generator leaves
        them: which end of the scores is the better one is told by all of them, or by none.
        """
        if len(self.passages) <= keep:
            return self
        return self.of_these(best_passages(self.passages, self.question, keep, score_kind=self.score_kind))

    def reordered(self, order: Sequence[int]) -> Example:
        """The same question with its passages in another order, which no longer tells which end of the scores is the
        better one: that stays as it was.
        """
        return replace(self.with_passages(order), score_kind=self._known_kind)

    def of_these(self, kept: Sequence[int]) -> Example:
        """The same question with fewer of its passages, of whose scores all tell which end is the better one: fewer may
        no longer tell it, or seem to.
        """
        if len(kept) == len(self.passages):
            return self.with_passages(kept)
        kind, some = self._known_kind, self.with_passages(kept)
        return replace(some if kind else some.without_scores(), score_kind=kind)

    @property
    def _known_kind(self) -> ScoreKind | None:
        """A kind of score that says which end is the better one, where kind or order tell it."""
        if self.score_kind not in (None, "unknown"):
            return self.score_kind
        rises = orientation([passage.score for passage in self.passages])
        return None if rises is None else "inner_product" if rises else "distance"

    def at_count(self, count: int) -> Example:
        """The same question with `count` passages: every gold one that fits and the best scored others, order kept."""
        gold = sorted(self.gold)[:count]
        others = [index for index in self.best_first() if index not in self.gold][: count - len(gold)]
        return self.with_passages(sorted([*gold, *others]))

    def gold_only(self) -> Example:
        """The same question with its gold passages alone."""
        return self.with_passages(sorted(self.gold))

    def shuffled(self, seed: int) -> Example:
        """The same question with its passages in an order drawn from the seed and the question."""
        order = list(range(len(self.passages)))
        random.Random(f"{seed} {self.key}").shuffle(order)
        return self.with_passages(order)

    def with_shuffled_scores(self, seed: int) -> Example:
        """The same question with its scores dealt out anew among the passages, drawn from the seed and the question:
        they say nothing, but which end of them is the better one stays known.
        """
        scores = [passage.score for passage in self.passages]
        random.Random(f"scores {seed} {self.key}").shuffle(scores)
        dealt = (replace(passage, score=score) for passage, score in zip(self.passages, scores, strict=True))
        return replace(self, passages=tuple(dealt), score_kind=self._known_kind)

    def without_scores(self) -> Example:
        """The same question as a retriever that keeps its scores to itself hands it on."""
        return replace(self, passages=tuple(replace(passage, score=None) for passage in self.passages))

    def with_passages(self, kept: Sequence[int], added: Sequence[Passage] = ()) -> Example:
        """The same question with some of its passages, in the order given, and then others that are not gold."""
        gold = frozenset(place for place, index in enumerate(kept) if index in self.gold)
        return replace(self, passages=(*(self.passages[index] for index in kept), *added), gold=gold)


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """Usable examples, and why others are not.

    Attributes:
        examples: The usable ones, in the order they came.
        skipped: Number left out by reason.
        source: Where they are from, for messages and reports.
    """

    examples: tuple[Example, ...]
    skipped: Mapping[str, int]
    source: str

    def require(self, minimum: int) -> tuple[Example, ...]:
        """The examples, if there are enough.

        Raises:
            InvalidInputError: Fewer than `minimum`; the message counts the reasons.
        """
        if len(self.examples) < minimum:
            reasons = "; ".join(f"{reason}: {count}" for reason, count in self.skipped.items()) or "none was left out"
            raise InvalidInputError(
                f"{self.source} has {len(self.examples)} usable examples and at least {minimum} are needed (left "
                f"out: {reasons}). Each example is one JSON object per line: {_SCHEMA}, with the answer in a gold "
                "passage."
            )
        return self.examples

    def describe(self) -> dict[str, Any]:
        """Counts for a report."""
        return {"source": self.source, "usable": len(self.examples), "skipped": dict(self.skipped)}


def load_examples(path: str | Path, *, score_kind: ScoreKind | None = None) -> ExampleSet:
    """Read examples from a JSONL file, gzip or not; `score_kind` is that of rows which do not say it.

    Raises:
        InvalidInputError: There is no such file, or it is not text.
    """
    file = Path(path)
    if not file.is_file():
        raise InvalidInputError(f"No examples at {file}: a JSONL file (.jsonl or .jsonl.gz) was expected.")
    return examples_from_rows(json_rows(file), source=encodable(file.name), score_kind=score_kind)


def examples_from_rows(
    rows: Iterable[object], *, source: str = "the examples", score_kind: ScoreKind | None = None
) -> ExampleSet:
    """Check rows of the schema and keep those that can be learned from.

    Left out, with their number: rows that do not follow the schema, without answers, without passages, without a gold
    passage or with nothing else, whose answer stands in no gold passage, whose kind of scores is unknown, and questions
    that are repeated, in whatever case and with whatever punctuation at their end. `score_kind` is that of rows which
    do not say it.
    """
    kept: list[Example] = []
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    for row in rows:
        found = example_of(row, score_kind=score_kind)
        asked = "" if isinstance(found, str) else _in_any_case(found.question) or found.key
        if asked in seen:
            found = "question repeated"
        if isinstance(found, str):
            skipped[found] += 1
        else:
            seen.add(asked)
            kept.append(found)
    return ExampleSet(tuple(kept), dict(skipped), source)


def split_examples(examples: Sequence[Example], *, dev_share: float) -> tuple[list[Example], list[Example]]:
    """Split into (train, dev) by question hash: neither order nor a seed changes where a question falls."""
    ranked = sorted(examples, key=lambda example: example.key)
    n_dev = min(max(round(dev_share * len(ranked)), 1), len(ranked) - 1) if len(ranked) > 1 else 0
    return ranked[n_dev:], ranked[:n_dev]


class _PunctuationToSpaces(dict[int, str]):
    """A table for `str.translate` that learns every character it meets: typographic marks and symbols count as well."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        self[code] = " " if unicodedata.category(letter)[0] in "PS" else letter
        return self[code]


_PUNCTUATION_TO_SPACES = _PunctuationToSpaces()


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and doubled spaces: the usual normal form of short answers."""
    words = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION_TO_SPACES).split()
    # An answer that is nothing but an article is a letter somebody asked for.
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def _in_any_case(question: str) -> str:
    """A question in lower case, without the punctuation at its end and doubled spaces."""
    return " ".join(unicodedata.normalize("NFKC", question).lower().split()).rstrip(" .,:;?!\u3002\u2026")


def holds_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in a text as whole words, after normalisation. Words of languages written
    without spaces end anywhere.
    """
    padded = f" {signs_apart(normalised(text))} "
    return any(f" {wanted} " in padded for answer in answers if (wanted := signs_apart(normalised(answer))))


def exact_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether a text is one of the answers, after normalisation."""
    return normalised(text) in {normalised(answer) for answer in answers}


def example_of(row: object, *, score_kind: ScoreKind | None = None, for_fit: bool = True) -> Example | str:
    """The example of a row of the schema, or why there is none.

    Args:
        row: What was read.
        score_kind: What its scores are, where it does not say it.
        for_fit: Whether it takes gold passages and others to be of use.
    """
    if not isinstance(row, Mapping):
        return "not a JSON object"
    question, answers, rows = row.get("question"), row.get("answers"), row.get("passages")
    if not isinstance(question, str) or not question.strip():
        return "no question"
    if not isinstance(answers, list) or not [one for one in answers if isinstance(one, str) and normalised(one)]:
        return "no answers"
    if not isinstance(rows, list) or not rows:
        return "no passages"
    passages = list(_passages_of(rows))
    if len(passages) != len(rows):
        return "a passage without text"
    marks = [_gold_mark(one) for one in rows]
    if None in marks:
        return "is_gold is neither true nor false"
    gold = frozenset(index for index, mark in enumerate(marks) if mark)
    if for_fit and not gold:
        return "no gold passage"
    if for_fit and len(gold) == len(passages):
        return "only gold passages"
    texts = tuple(one for one in answers if isinstance(one, str) and normalised(one))
    present = [one for one in texts if any(holds_answer(passages[index].content, [one]) for index in gold)]
    if gold and not present:
        return "answer in no gold passage"
    kind = row.get("score_kind") or score_kind
    if kind is not None and not is_score_kind(kind):
        return "unknown score_kind"
    return Example(
        question.strip(), tuple(sorted(texts, key=lambda one: one not in present)), tuple(passages), gold, kind
    )


def _gold_mark(row: Mapping[str, Any]) -> bool | None:
    """Whether a passage's row says that it is gold, which 1 does as well; None where it says something else."""
    mark = row.get("is_gold") or False
    return bool(mark) if isinstance(mark, (bool, int, float)) and mark in (0, 1) else None


def _passages_of(rows: Sequence[object]) -> Iterator[Passage]:
    for row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get("text"), str) or not row["text"].strip():
            return
        title = row.get("title")
        yield Passage(
            row["text"], score=row.get("score"), title=title if isinstance(title, str) and title.strip() else None
        )
