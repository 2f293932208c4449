"""Which retrieved passages stand in this prompt, and with which scores: the memory behind the framework adapters.

A framework's callbacks tell what is retrieved and by which run; the language model sees a prompt and knows its own run.
In between the passages may be formatted, reordered, cut, cached, or cross threads. So passages are addressed by their
content, and the runs only rank who may have retrieved them:

    registry = PassageRegistry()
    registry.record(run, parent)                      # every run, as it starts
    registry.record(run, parent, gate=True, query="...", source="VectorStoreRetriever")     # retrievers and rerankers
    registry.put(run, [(text, score, id), ...])       # as they return
    found = registry.lookup(run, prompt)  # found.passages in prompt order, found.how, found.higher_is_better

`lookup` looks among the passages of the run and its ancestors, nearest first (*lineage*); if none of them stands in the
prompt, among all recent ones (*registry*), where a text that several queries retrieved gets the scores of the query
that stands in the prompt, where passages of a query that does not stand there have neither scores nor a question, and
where a few words of a text, as an answer quotes them, do not count. Calls inside a gate (a reranker that asks the
model, a query rewriter inside a retriever) get no passages. Scores that cannot be compared or told apart are withheld,
never guessed.

Thread-safe; all memory is bounded, the least recently used goes first.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from focus_rag.adapters.prompt_scan import SHORTEST_ANYWHERE, WordTriple, anchors, places_in, word_triples
from focus_rag.adapters.retrieval_records import (
    CapturedPassages,
    Hit,
    Origin,
    Retrieval,
    StoredText,
    captured,
    from_registry,
    query_rank,
)
from focus_rag.passages import usable_score
from focus_rag.score_order import orientation_by_order

__all__ = ["CapturedPassages", "PassageRegistry", "RetrievedText"]

RetrievedText = tuple[str, object, str | None]
"""Text, the retriever's score as it came (or None), the document's id (or None)."""

_Row = tuple[str, float | None, str | None]

_MANY_TEXTS: Final = 512  # from so many on, those of which no words stand in a prompt are not looked for there
_NEAREST: Final = 32  # retrievals in which changed passages are looked for
_DEEPEST_LINEAGE: Final = 256
_MOST_FEW_WORD_TEXTS: Final = 512
_LEAST_WITHOUT_LINEAGE: Final = 0.3


class _Run:
    __slots__ = ("asked", "gate", "parent", "query", "retrievals", "source")

    def __init__(
        self, parent: Hashable | None, gate: bool, query: str | None, source: str | None, asked: str | None
    ) -> None:
        self.asked = asked
        self.parent = parent
        self.gate = gate
        self.query = query
        self.source = source
        self.retrievals: dict[Retrieval, None] = {}

    def hold(self, retrieval: Retrieval, most: int) -> None:
        if retrieval not in self.retrievals:
            if len(self.retrievals) >= most:
                del self.retrievals[next(iter(self.retrievals))]
            self.retrievals[retrieval] = None


class PassageRegistry:
    """Bounded memory of what was retrieved lately, by which run.

    Args:
        max_runs: Runs remembered.
        max_retrievals: Retrievals remembered.
        max_texts: Passage texts remembered.
        max_bytes: Bytes of UTF-8 those texts may take together, at most.
    """

    def __init__(
        self,
        *,
        max_runs: int = 4096,
        max_retrievals: int = 2048,
        max_texts: int = 4096,
        max_bytes: int = 32 * 2**20,
    ) -> None:
        self.max_runs = max_runs
        self.max_retrievals = max_retrievals
        self.max_texts = max_texts
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        self._runs: OrderedDict[Hashable, _Run] = OrderedDict()
        self._retrievals: deque[Retrieval] = deque()
        self._texts: OrderedDict[str, StoredText] = OrderedDict()
        # Most texts are only ever looked up by lineage: the index is brought up to date when somebody asks it.
        self._not_indexed: dict[StoredText, None] = {}
        self._by_anchor: dict[WordTriple, dict[StoredText, None]] = {}
        self._few_words: OrderedDict[StoredText, None] = OrderedDict()
        self._bytes = 0

    @property
    def size(self) -> dict[str, int]:
        """Runs, retrievals, texts and text bytes held now."""
        with self._lock:
            return {
                "runs": len(self._runs),
                "retrievals": len(self._retrievals),
                "texts": len(self._texts),
                "bytes": self._bytes,
            }

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._runs.clear()
            self._retrievals.clear()
            self._texts.clear()
            self._not_indexed.clear()
            self._by_anchor.clear()
            self._few_words.clear()
            self._bytes = 0

    def record(
        self,
        run_id: Hashable,
        parent_id: Hashable | None = None,
        *,
        gate: bool = False,
        query: str | None = None,
        source: str | None = None,
        asked: str | None = None,
    ) -> None:
        """Note that a run has started.

        Args:
            run_id: The run.
            parent_id: The run that started it.
            gate: Whether model calls below it serve the retrieval itself and are not to be focused.
            query: What it was asked to retrieve.
            source: Who gives the scores of what it returns. Scores of different sources are never mixed.
            asked: The run's input, which may be a question. It counts as the query of passages that come from this run
                or one below it without a query of their own, in prompts that contain it.
        """
        with self._lock:
            if run_id not in self._runs:
                self._runs[run_id] = _Run(parent_id, gate, query, source, asked)
                if parent_id in self._runs:
                    self._runs.move_to_end(parent_id)
                    self._runs.move_to_end(run_id)
            while len(self._runs) > self.max_runs:
                self._runs.popitem(last=False)

    def put(
        self,
        run_id: Hashable | None,
        passages: Iterable[RetrievedText],
        *,
        query: str | None = None,
        source: str | None = None,
        higher_is_better: bool | None = None,
        handed_on: bool = False,
    ) -> None:
        """Note passages that a run retrieved or handed on.

        Passages that are handed on without scores, or with the scores that they had before, keep what was known of
        those, so handing on in another order loses nothing.

        Args:
            run_id: The run; None if there is none, then the passages are found by content only.
            passages: In retrieval order.
            query: What was asked; by default what the run was recorded with. Without any, nobody knows what for.
            source: Who gives the scores; by default what the run was recorded with.
            higher_is_better: Orientation where it is known; by default the order of the scores tells it, if it clearly
                rises or falls. If the order says the opposite, the orientation counts as unknown.
            handed_on: Whether ancestors of the run have retrieved the passages; without a query this is taken for
                granted.
        """
        rows = [(stripped, usable_score(score), id_) for text, score, id_ in passages if (stripped := text.strip())]
        if not rows:
            return
        with self._lock:
            lineage = list(self._lineage(run_id))
            if lineage:
                query = lineage[0].query if query is None else query
                source = source or lineage[0].source
            handed_on = handed_on or query is None
            earlier = list(_newest_first(lineage if handed_on else lineage[:1]))
            repeated = next((r for r in earlier if query in (None, r.query) and self._repeats(r, rows)), None)
            if repeated is None:
                # What was returned twice says where it stands once.
                scored = dict.fromkeys((text, score) for text, score, _ in rows if score is not None)
                told = orientation_by_order([score for _, score in scored])
                given = _origins(lineage, query, higher_is_better)
                if higher_is_better is None:
                    higher_is_better = told
                elif told is not None and told != higher_is_better:
                    higher_is_better = None
                asked = next((run.asked for run in lineage if run.asked), None)
                own = Origin(source, query or asked, higher_is_better)
                repeated = self._new_retrieval(
                    query, asked, rows, lambda *hit: given(*hit) or own, earlier, is_ranked=told is not None
                )
            for run in lineage:
                run.hold(repeated, self.max_retrievals)
            self._shrink()

    def _repeats(self, retrieval: Retrieval, rows: Sequence[_Row]) -> bool:
        """Whether rows only hand on what a retrieval returned, with its scores or without."""
        copies: dict[StoredText, int] = {}
        for content, score, _ in rows:
            text = self._texts.get(content)
            hit = retrieval.hits.get(text) if text is not None else None
            if text is None or hit is None:
                return False
            seen = copies[text] = copies.get(text, 0) + 1
            if seen > len(hit.scores) or (score is not None and hit.scores[seen - 1] != score):
                return False
        return True

    def _new_retrieval(
        self,
        query: str | None,
        asked: str | None,
        rows: Sequence[_Row],
        origin_of: Callable[[StoredText, float | None], Origin],
        earlier: Sequence[Retrieval],
        *,
        is_ranked: bool,
    ) -> Retrieval:
        """File rows, which may stand in the order of their scores; texts that repeat a hit of an earlier retrieval, or
        have no score, keep that hit.
        """
        hits: dict[StoredText, Hit] = {}
        for content, score, id_ in rows:
            text = self._remembered(content)
            hit = hits.get(text)
            if hit is None:
                hit = hits[text] = Hit(origin_of(text, score))
            hit.scores.append(score)
            hit.ids.append(id_)
        if query is None:  # they still serve the question that they were retrieved for, whole or in part
            query = next((r.query for r in earlier if not hits.keys().isdisjoint(r.hits)), None)
            query = query or next((r.query for r in earlier[:_NEAREST] if r.query and _share_parts(r.hits, hits)), None)
        for text, hit in hits.items() if earlier else ():
            hits[text] = next((old for r in earlier if (old := r.hits.get(text)) and old.agrees(hit)), hit)
        retrieval = Retrieval(query, hits, asked, is_ranked=is_ranked)
        for text in hits:
            text.found_by(retrieval)
        self._retrievals.append(retrieval)
        return retrieval

    def lookup(self, run_id: Hashable | None, prompt: str) -> CapturedPassages:
        """The passages that stand in the prompt of a model call, with the scores of the retrieval they came from.

        Args:
            run_id: The run of the call, None if unknown.
            prompt: The text the model gets.
        """
        with self._lock:
            lineage = list(self._lineage(run_id))
            if any(run.gate for run in lineage):
                return CapturedPassages(note="the call serves a retriever or reranker")
            ranked: dict[Retrieval, int] = {}
            for level, run in enumerate(lineage):
                for retrieval in reversed(run.retrievals):
                    ranked.setdefault(retrieval, level)
            candidates = _copies(ranked)
            likely = candidates if len(candidates) <= _MANY_TEXTS else self._likely(candidates, prompt)
        if places := _placed(prompt, likely):
            queries = {r: query_rank(r.asked_in(prompt), prompt) for r in ranked}
            # Stable: newer first among equals.
            order = sorted(ranked, key=lambda r: (-ranked[r], queries[r]), reverse=True)
            return captured(prompt, places, order, "lineage", len(candidates))

        with self._lock:
            texts = self._mentioned(prompt)
            recent = dict.fromkeys(r for text in texts for r in text.retrievals if r.hits)
            candidates_anywhere = {text: n for text, n in _copies(recent).items() if text in texts}
        if places := _placed(prompt, candidates_anywhere, least=_LEAST_WITHOUT_LINEAGE):
            return from_registry(prompt, places, recent, len(candidates))
        missed = (
            f"{len(candidates)} retrieved texts, none of them in this prompt"
            if candidates
            else "nothing was retrieved for this call"
        )
        return CapturedPassages(retrieved=len(candidates), note=missed)

    def _lineage(self, run_id: Hashable | None) -> Iterator[_Run]:
        for _ in range(_DEEPEST_LINEAGE):
            run = self._runs.get(run_id) if run_id is not None else None
            if run is None:
                return
            yield run
            run_id = run.parent

    def _remembered(self, text: str) -> StoredText:
        known = self._texts.get(text)
        if known is not None:
            self._texts.move_to_end(text)
            if known in self._few_words:
                self._few_words.move_to_end(known)
            elif not known.anchors and len(text) >= SHORTEST_ANYWHERE:  # dropped for newer ones, or not indexed yet
                self._not_indexed[known] = None
            return known
        new = self._texts[text] = StoredText(text)
        self._bytes += new.size
        if len(text) >= SHORTEST_ANYWHERE:
            self._not_indexed[new] = None
        return new

    def _index(self) -> None:
        for text in self._not_indexed:
            text.anchors = anchors(text.text)
            for anchor in text.anchors:
                self._by_anchor.setdefault(anchor, {})[text] = None
            if not text.anchors:
                self._few_words[text] = None
                if len(self._few_words) > _MOST_FEW_WORD_TEXTS:
                    self._few_words.popitem(last=False)
        self._not_indexed.clear()

    def _shrink(self) -> None:
        while len(self._retrievals) > self.max_retrievals:
            self._retrievals.popleft().hits = {}
        while self._texts and (len(self._texts) > self.max_texts or self._bytes > self.max_bytes):
            _, gone = self._texts.popitem(last=False)
            self._bytes -= gone.size
            self._not_indexed.pop(gone, None)
            self._few_words.pop(gone, None)
            for anchor in gone.anchors:
                holders = self._by_anchor[anchor]
                holders.pop(gone, None)
                if not holders:
                    del self._by_anchor[anchor]
            gone.text = ""
            gone.retrievals.clear()

    def _likely(self, texts: Mapping[StoredText, int], prompt: str) -> dict[StoredText, int]:
        """Those of which some words stand in the prompt in a row, and those that are too short to tell."""
        self._index()
        triples = word_triples(prompt)
        return {text: n for text, n in texts.items() if not (text.anchors and triples.isdisjoint(text.anchors))}

    def _mentioned(self, prompt: str) -> dict[StoredText, None]:
        """Texts of which some words stand in the prompt in a row: candidates, to be located."""
        self._index()
        texts: dict[StoredText, None] = {}
        if self._by_anchor:
            for anchor in self._by_anchor.keys() & word_triples(prompt):
                texts.update(self._by_anchor[anchor])
        texts.update((text, None) for text in self._few_words if text.text in prompt)
        return texts


def _newest_first(lineage: Iterable[_Run]) -> dict[Retrieval, None]:
    """Retrievals of a run and its ancestors, each once, the nearest and of these the newest first."""
    return {retrieval: None for run in lineage for retrieval in reversed(run.retrievals)}


def _origins(
    lineage: Iterable[_Run], query: str | None, higher_is_better: bool | None
) -> Callable[[StoredText, float | None], Origin | None]:
    """Who gave a text its score, among the nearest retrievals for a query, or for any if there is none: a passage that
    was cut, or exchanged for what stands around it, still carries the score that it was given. Not those whose scores
    are known to be the other way up.
    """
    given: dict[float, list[tuple[StoredText, Origin]]] = {}
    for retrieval in itertools.islice(_newest_first(lineage), _NEAREST):
        for text, hit in retrieval.hits.items() if query in (None, retrieval.query) else ():
            for score in hit.scores:
                if score is not None and {higher_is_better, hit.origin.higher_is_better} != {True, False}:
                    given.setdefault(score, []).append((text, hit.origin))

    def origin_of(text: StoredText, score: float | None) -> Origin | None:
        known = () if score is None else given.get(score, ())
        return next((origin for old, origin in known if text.overlaps(old)), None)

    return origin_of


def _share_parts(some: Iterable[StoredText], others: Iterable[StoredText]) -> bool:
    """Whether a text of one stands in a text of the other."""
    long = [[text for text in texts if len(text.text) >= SHORTEST_ANYWHERE] for texts in (some, others)]
    return any(one.overlaps(other) for one, other in itertools.product(*long))


def _copies(retrievals: Iterable[Retrieval]) -> dict[StoredText, int]:
    """Every text of some retrievals, with the most often that one of them returned it."""
    copies: dict[StoredText, int] = {}
    for retrieval in retrievals:
        for text, hit in retrieval.hits.items():
            if text.text and len(hit.scores) > copies.get(text, 0):
                copies[text] = len(hit.scores)
    return copies


def _placed(prompt: str, copies: Mapping[StoredText, int], *, least: float = 0.0) -> dict[StoredText, list[int]]:
    texts = {text.text: (text, n) for text, n in copies.items()}
    found = places_in(prompt, {content: n for content, (_, n) in texts.items()}, least=least)
    return {texts[content][0]: starts for content, starts in found.items()}
