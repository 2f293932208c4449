"""Examples from documents that nobody labelled: a sentence with a gap, its passage as gold, retrieved distractors."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

from focus_rag.examples import Example, ExampleSet, holds_answer
from focus_rag.passages import Passage
from focus_rag.search.documents import read_folder, split_document
from focus_rag.search.passage_index import PassageIndex

_GAP = "___"
# Neither the point of a number nor that of an initial ends one.
_SENTENCE = re.compile(r"(?:[^.!?]|[.!?](?!\s|$)|(?<=\b[A-Z])\.)+?(?<!\b[A-Z])[.!?](?=\s|$)")
# What a reader can look up: dates and numbers, and names of several words or within the sentence.
_ANSWER = re.compile(
    r"(?<=[a-z,] )(?:[A-Z][\w'-]+(?: (?:of |the )?[A-Z][\w'-]+){0,3}|\d[\d,.]*(?: [A-Z][a-z]+ \d{4})?)(?=[ ,.;!?)])"
)
_FEWEST_WORDS, _MOST_WORDS = 6, 40


def examples_from_documents(folder: str | Path, *, passages: int = 20, most: int = 400, seed: int = 0) -> ExampleSet:
    """Make examples from a folder of documents.

    A name or a figure is taken out of a sentence; the question asks for it. What the retriever finds for the rest of
    the sentence are the passages, with their scores, except those that hold the answer elsewhere; a gold passage that
    was not found takes the last place. Every passage is asked about once before any is asked about again, each sentence
    once.

    Args:
        folder: Documents as `documents.read_folder` reads them.
        passages: Passages per question; fewer where there are not so many.
        most: Questions at most.
        seed: Which sentences are drawn.

    Raises:
        DocumentError: Nothing in the folder can be read.
    """
    documents, unread = read_folder(folder)
    every = [passage for document in documents for passage in split_document(document)]
    skipped: Counter[str] = Counter({"file that cannot be read": len(unread)} if unread else {})
    index = PassageIndex(every)
    rng = random.Random(seed)
    gaps = [(passage, _gaps(rng, passage)) for passage in rng.sample(every, len(every))]
    found: dict[str, Example] = {}
    without = sum(not of_passage for _, of_passage in gaps)
    if without:
        skipped["passage without a sentence that asks for a name or a figure"] = without
    for turn in range(max((len(of_passage) for _, of_passage in gaps), default=0)):
        for passage, of_passage in gaps:
            if turn < len(of_passage) and len(found) < most:
                example = _example(passage, *of_passage[turn], index, passages)
                if isinstance(example, Example) and example.key in found:
                    example = "question repeated"
                if isinstance(example, Example):
                    found[example.key] = example
                else:
                    skipped[example] += 1
    return ExampleSet(tuple(found.values()), dict(skipped), str(folder))


def _gaps(rng: random.Random, passage: Passage) -> list[tuple[str, re.Match[str]]]:
    """Sentences of a passage in random order, each with something in it to ask for."""
    found = []
    for sentence in (one.group().strip() for one in _SENTENCE.finditer(passage.text)):
        if _FEWEST_WORDS <= len(sentence.split()) <= _MOST_WORDS:
            choices = [one for one in _ANSWER.finditer(sentence) if passage.content.count(one.group()) == 1]
            if choices:
                found.append((sentence, rng.choice(choices)))
    rng.shuffle(found)
    return found


def _example(gold: Passage, sentence: str, match: re.Match[str], index: PassageIndex, count: int) -> Example | str:
    """An example whose answer stands in this passage, or why there is none."""
    gapped = f"{sentence[: match.start()]}{_GAP}{sentence[match.end() :]}"
    answer = match.group().strip(" ,.")
    # More than needed, because passages that hold the answer too are left out.
    retrieved = index.search(gapped.replace(_GAP, " "), 2 * count)
    kept = [one for one in retrieved if one.id == gold.id or not holds_answer(one.content, [answer])][:count]
    if not any(one.id == gold.id for one in kept):
        lowest = min((one.score for one in kept if one.score is not None), default=None)
        kept = [*kept[: count - 1], Passage(gold.text, score=lowest, title=gold.title, id=gold.id)]
    if len(kept) < 2:
        return "no other passage to tell it from"
    place = next(i for i, one in enumerate(kept) if one.id == gold.id)
    return Example(f"Fill the gap: {gapped}", (answer,), tuple(kept), frozenset({place}))
