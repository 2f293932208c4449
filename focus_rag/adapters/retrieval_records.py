"""What one retrieval found, and which retrieval the passages of a prompt came from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from focus_rag.adapters.prompt_scan import WordTriple
from focus_rag.passages import Passage

_RETRIEVALS_PER_TEXT: Final = 64
_SERIALS: Final = itertools.count()


@dataclass(frozen=True, slots=True)
class CapturedPassages:
    """The passages of one call to the language model.

    Attributes:
        passages: Those that stand in the prompt, in its order. A text that one retrieval returned twice and that stands
            there twice comes twice.
        how: Retrieved by an ancestor of the call (`lineage`), recently by anybody (`registry`), or not found (`none`).
        higher_is_better: Orientation of the scores, from their order when they were retrieved; None if that does not
            tell.
        in_order: False where their scores stand in no order, best first or last; None where that is not known.
        query: What they were retrieved for, several queries one after the other; None where nobody knows.
        retrieved: How many different texts the lineage had retrieved before this call, found in the prompt or not.
        note: Why there are no passages, or why they have no scores; empty otherwise.
    """

    passages: tuple[Passage, ...] = ()
    how: Literal["lineage", "registry", "none"] = "none"
    higher_is_better: bool | None = None
    query: str | None = None
    in_order: Literal[False] | None = None
    retrieved: int = 0
    note: str = ""

    def comparable(self) -> CapturedPassages:
        """The same, without scores where nothing tells which way up they are; for callers who do not know it either."""
        if self.higher_is_better is not None or len({passage.score for passage in self.passages} - {None}) < 2:
            return self
        bare = tuple(replace(passage, score=None) for passage in self.passages)
        return replace(
            self, passages=bare, in_order=False, note="the order of the scores does not tell which way up they are"
        )


class StoredText:
    """One passage text, and its size in bytes of UTF-8. Eviction empties `text`, so that retrievals which still point
    here keep no characters alive.
    """

    __slots__ = ("anchors", "retrievals", "size", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        self.anchors: tuple[WordTriple, ...] = ()
        self.retrievals: list[Retrieval] = []

    def overlaps(self, other: StoredText) -> bool:
        """Whether one of the two stands in the other."""
        return self.text in other.text or other.text in self.text

    def found_by(self, retrieval: Retrieval) -> None:
        """Note a retrieval; the newest are kept."""
        self.retrievals.append(retrieval)
        if len(self.retrievals) > _RETRIEVALS_PER_TEXT:
            del self.retrievals[0]


class Origin:
    """Who gave a score, in which search, and which way up it is."""

    __slots__ = ("higher_is_better", "search", "source")

    def __init__(self, source: str | None, search: str | None, higher_is_better: bool | None) -> None:
        self.source = source
        self.search = search
        self.higher_is_better = higher_is_better


class Hit:
    """What a retrieval says about one text: a score and an id for each time it was returned."""

    __slots__ = ("ids", "origin", "scores")

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.scores: list[float | None] = []
        self.ids: list[str | None] = []

    def agrees(self, other: Hit) -> bool:
        """Whether `other` repeats this hit, with the same scores or with none."""
        return other.scores == self.scores or not other.is_scored

    @property
    def is_scored(self) -> bool:
        """Whether there is any score."""
        return self.scores.count(None) < len(self.scores)


class Retrieval:
    """The result of one retrieval. Eviction empties `hits`, so that runs and texts may go on pointing here."""

    __slots__ = ("asked", "hits", "is_ranked", "query", "serial")

    def __init__(
        self, query: str | None, hits: dict[StoredText, Hit], asked: str | None = None, *, is_ranked: bool = False
    ) -> None:
        self.query = query
        self.asked = asked
        self.hits = hits
        self.is_ranked = is_ranked
        self.serial = next(_SERIALS)

    def search_of(self, hit: Hit) -> str | None:
        """In which search a hit got its score: this one where it ranked them all, else the one that the hit is from."""
        return (self.query or self.asked) if self.is_ranked else hit.origin.search

    def asked_in(self, prompt: str) -> str | None:
        """What it was for; where nobody knows, what the run that brought it was given, if that stands in the prompt."""
        if self.query or not self.asked:
            return self.query
        return self.asked if re.search(rf"(?<!\w){re.escape(self.asked)}(?!\w)", prompt) else None


def from_registry(
    prompt: str,
    places: Mapping[StoredText, Sequence[int]],
    recent: Iterable[Retrieval],
    retrieved: int,
) -> CapturedPassages:
    """Choose among the retrievals of anybody: the query in the prompt, then the most passages, then their order, then
    age.
    """
    # Eviction by another thread replaces the hits of a retrieval at any time.
    hits = {retrieval: retrieval.hits for retrieval in recent}
    said = _plain(prompt)

    def fit(retrieval: Retrieval) -> tuple[tuple[int, int], int, bool]:
        starts = [places[text][0] for text in hits[retrieval] if text in places]
        return query_rank(retrieval.asked_in(prompt), prompt), len(starts), starts == sorted(starts)

    fits = {retrieval: fit(retrieval) for retrieval in hits}
    order = sorted(fits, key=lambda retrieval: (fits[retrieval], retrieval.serial), reverse=True)
    for text in places:
        rivals = [retrieval for retrieval in order if text in hits[retrieval]]
        if not rivals:  # evicted meanwhile
            continue
        best = rivals[0]
        (place, _), covered, _ = fits[best]
        if place < 0 and covered < len(places):
            return captured(prompt, places, order, "registry", retrieved, "these passages were not retrieved together")
        if place < 0 and best.query and _plain(best.query) not in said:
            doubt = "what these passages were retrieved for does not stand in the prompt"
            return captured(prompt, places, order, "registry", retrieved, doubt)
        # The same query twice is a retriever and the reranker around it: the later one counts.
        others = [
            retrieval
            for retrieval in rivals
            if fits[retrieval] == fits[best] and retrieval.asked_in(prompt) != best.asked_in(prompt)
        ]
        if any(hits[retrieval][text].scores != hits[best][text].scores for retrieval in others):
            doubt = "several queries retrieved these passages with different scores"
            return captured(prompt, places, order, "registry", retrieved, doubt)
    return captured(prompt, places, order, "registry", retrieved)


def captured(
    prompt: str,
    places: Mapping[StoredText, Sequence[int]],
    order: Sequence[Retrieval],
    how: Literal["lineage", "registry"],
    retrieved: int,
    doubt: str = "",
) -> CapturedPassages:
    """The passages in a prompt, each with the score of the first retrieval in `order` that holds it.

    Args:
        prompt: What the model is shown.
        places: First characters of each text in the prompt.
        order: Retrievals, the likeliest first.
        how: How they were found.
        retrieved: How many texts were retrieved.
        doubt: Why the scores cannot be trusted, if so; they are withheld then.
    """
    found: list[tuple[int, str, float | None, str | None]] = []
    origins: set[Origin] = set()
    queries: dict[str, None] = {}
    searches: set[str | None] = set()
    for text, starts in places.items():
        for retrieval in order:
            if hit := retrieval.hits.get(text):
                break
        else:  # evicted meanwhile
            continue
        if hit.is_scored:
            origins.add(hit.origin)
            searches.add(retrieval.search_of(hit))
        if asked := retrieval.asked_in(prompt):
            queries[asked] = None
        for i, start in enumerate(starts):
            known = min(i, len(hit.scores) - 1)
            found.append((start, text.text, hit.scores[known], hit.ids[known]))
    found.sort(key=lambda row: row[0])
    # In doubt about the retrieval, whose question it is must not be guessed; one about scores alone says nothing of it.
    query = None if doubt else " ".join(_being_answered(queries, prompt, [row[0] for row in found])) or None
    if len(searches - {None}) > 1:
        doubt = doubt or "the scores come from several searches and cannot be compared"
    if len({origin.source for origin in origins} - {None}) > 1:
        doubt = doubt or "the scores come from different retrievers and cannot be compared"
    ways = {origin.higher_is_better for origin in origins} - {None}
    if len(ways) > 1:
        doubt = doubt or "some scores are distances and some are similarities"
    passages = tuple(Passage(text, None if doubt else score, id=id_) for _, text, score, id_ in found if text)
    way = None if doubt or not ways else ways.pop()
    return CapturedPassages(passages, how if passages else "none", way, query, None, retrieved, doubt)


def _being_answered(queries: Iterable[str], prompt: str, starts: Sequence[int]) -> list[str]:
    """Without the questions of a conversation that are answered already: passages stand between them and the last one.

    Args:
        queries: What the passages were retrieved for.
        prompt: What the model is shown.
        starts: First characters of the passages.
    """
    ends = {query: query_rank(query, prompt)[0] for query in queries}
    last = max(ends.values(), default=-1)
    return [query for query, end in ends.items() if end < 0 or not any(end <= start < last for start in starts)]


def _plain(text: str) -> str:
    """A text in one case and with single spaces, to be looked for."""
    return " ".join(text.split()).casefold()


def query_rank(query: str | None, prompt: str) -> tuple[int, int]:
    """Where a query ends in the prompt and how long it is: the last question is the one being answered."""
    wanted = (query or "").strip()
    start = prompt.rfind(wanted) if wanted else -1
    return (start + len(wanted), len(wanted)) if start >= 0 else (-1, 0)
