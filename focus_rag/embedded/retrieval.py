"""Examples for fitting and evaluation: a generated corpus, a retriever over it, and questions with what it returns.

`python -m focus_rag.embedded.retrieval --split dev --questions 320 --passages 20 --rich 0 --out FILE.jsonl` writes
some.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from focus_rag.abstention import NOT_STATED
from focus_rag.embedded import world
from focus_rag.embedded.arguments import new_file, whole_number
from focus_rag.embedded.names import Split
from focus_rag.errors import InvalidInputError
from focus_rag.examples import ExampleSet, examples_from_rows
from focus_rag.search.bm25 import BM25
from focus_rag.search.embedders import TfidfEmbedder

if TYPE_CHECKING:
    import numpy as np


class Embedding:
    """Cosines of texts embedded by latent semantic analysis: words that go together count for each other, single words
    for less.

    Args:
        texts: The corpus.
        dimensions: Of the embedding; few against the words of the corpus, or it is a search for words again.
    """

    def __init__(self, texts: list[str], dimensions: int = 128) -> None:
        self._embedder = TfidfEmbedder(dimensions)
        self._embedder.fit(texts)
        self._vectors = self._embedder.embed(texts)

    def scores(self, query: str) -> np.ndarray:
        """One score for each text of the corpus; higher is better."""
        import numpy as np

        return np.asarray(self._vectors @ self._embedder.embed([query])[0])


Retriever = Literal["bm25", "embedding"]
_RETRIEVERS: dict[Retriever, Callable[[list[str]], BM25 | Embedding]] = {"bm25": BM25, "embedding": Embedding}


@dataclass(frozen=True)
class Corpus:
    """Entities, the passages about them, and for each question the passage that answers it."""

    passages: tuple[world.WorldPassage, ...]
    askable: tuple[tuple[world.Entity, str, int], ...]
    retriever: BM25 | Embedding


@lru_cache(maxsize=4)
def corpus(
    split: Split, telling: world.Telling, seed: int = 0, families: int = 250, retriever: Retriever = "bm25"
) -> Corpus:
    """A corpus of entity families.

    A family is one entity, entities of similar name, and all passages about them: every fact stands in one
    passage, and what has changed stands with its former value in another.

    Args:
        split: Whose names and sentence forms to use.
        telling: How richly passages are told.
        seed: Another seed gives another corpus.
        families: Number of families; each brings some 25 passages.
        retriever: What searches it.
    """
    rng = random.Random(f"corpus {split} {seed}")
    passages: list[world.WorldPassage] = []
    askable: list[tuple[world.Entity, str, int]] = []
    for _ in range(families):
        head = world.new_entity(rng, split)
        members = {head.name: head}
        for _ in range(rng.randint(3, 9)):
            other = world.sibling(rng, split, head)
            members.setdefault(other.name, other)
        for entity in members.values():
            keys = list(entity.facts)
            rng.shuffle(keys)
            while keys:
                size = rng.randint(1, 3)
                part, keys = keys[:size], keys[size:]
                askable += [(entity, key, len(passages)) for key in part]
                passages.append(world.passage(rng, split, entity, part, telling))
            for key in entity.facts:
                if world.attribute_of(split, entity, key).past and rng.random() < 0.5:
                    passages.append(world.outdated_only(rng, split, entity, key, telling))
    return Corpus(tuple(passages), tuple(askable), _RETRIEVERS[retriever]([passage.content for passage in passages]))


def evaluation_examples(
    split: Split,
    n: int,
    n_passages: int,
    noise: float = 1.0,
    seed: int = 0,
    *,
    rich: float = 1.0,
    with_gold: bool = True,
    retriever: Retriever = "bm25",
) -> list[dict[str, Any]]:
    """Questions with passages from a real retriever over a generated corpus.

    The gold passage stands among `n_passages - 1` others: a share `noise` of them are the passages that the retriever
    ranks highest for the question (they are about the same or a similar entity), the rest are drawn from what it ranks
    low. Every passage keeps its score; they come in retrieval order, the best score first.

    Args:
        split: "train", "dev" or "test"; names, sentence forms and corpora of the splits are disjoint.
        n: Number of questions.
        n_passages: Passages of each.
        noise: Share of the other passages that are hard distractors, in [0, 1].
        seed: Another seed gives other questions over the same corpus.
        rich: Share of facts told and asked in one of the many sentence forms, not plainly.
        with_gold: False puts one more distractor in the place of the gold passage; the answer is then "not stated".
        retriever: What finds them.

    Returns:
        Dicts with `id`, `question`, `answers` and `passages`; a passage has `text`, `title`, `score` and `is_gold`.

    Raises:
        InvalidInputError: A number out of range.
    """
    if split not in ("train", "dev", "test"):
        raise InvalidInputError(f"split must be train, dev or test, got {split!r}.")
    if n_passages < 1 or not 0.0 <= noise <= 1.0 or not 0.0 <= rich <= 1.0:
        raise InvalidInputError(
            f"n_passages must be at least 1, noise and rich in [0, 1]; got {n_passages}, {noise} and {rich}."
        )
    rng = random.Random(f"examples {split} {n_passages} {noise} {seed} {with_gold}")
    telling = world.Telling(rich=rich)
    source = corpus(split, telling, retriever=retriever)
    questions = random.Random(f"questions {split} {seed}")
    examples = []
    for number in range(n):
        entity, key, gold = questions.choice(source.askable)
        value = entity.facts[key] if with_gold else NOT_STATED
        question = world.question(questions, split, entity, key, telling)
        scores = source.retriever.scores(question)
        ranked = [int(i) for i in (-scores).argsort(kind="stable") if i != gold]
        n_others = n_passages - 1 if with_gold else n_passages
        n_hard = round(noise * n_others)
        if n_hard > len(ranked) or n_others - n_hard > len(ranked) - len(ranked) // 3:
            raise InvalidInputError(
                f"The corpus has {len(source.passages)} passages, too few for {n_passages} to a question: ask for "
                "fewer."
            )
        chosen = ranked[:n_hard] + rng.sample(ranked[len(ranked) // 3 :], n_others - n_hard)
        if with_gold:
            chosen.append(gold)
        rng.shuffle(chosen)  # the order of equals
        chosen.sort(key=lambda i: -scores[i])
        examples.append(
            {
                "id": f"world-{split}-{seed}-{number}",
                "question": question,
                "answers": [world.plain_statement(entity, key, value), value],
                "passages": [
                    {
                        "text": source.passages[i].text,
                        "title": source.passages[i].title,
                        "score": round(float(scores[i]), 4),
                        "is_gold": i == gold,
                    }
                    for i in chosen
                ],
            }
        )
    return examples


def generated_examples(seed: int = 0) -> ExampleSet:
    """Questions to fit on where none are labelled: half put plainly, half with half of the facts and questions in other
    forms, 20 passages each by BM25.

    They are about things that exist nowhere, so whatever a model answers it has from the passages. The profile that
    comes with the package was fitted on those of seed 0. `focus-rag eval` asks others by default, of another split.

    Args:
        seed: Another seed gives other questions over the same passages.
    """
    first = 310 + 2 * seed
    plain = evaluation_examples("dev", 130, 20, seed=first, rich=0.0)
    mixed = evaluation_examples("dev", 130, 20, seed=first + 1, rich=0.5)
    return examples_from_rows([*plain, *mixed], source="the generated world")


def main(arguments: list[str] | None = None) -> None:
    """Command line: write examples as JSON lines."""
    parser = argparse.ArgumentParser(
        prog="python -m focus_rag.embedded.retrieval",
        description="Write questions of the generated world with their passages.",
    )
    parser.add_argument("--split", choices=("train", "dev", "test"), default="dev")
    parser.add_argument("--questions", type=whole_number(1), default=320)
    parser.add_argument("--passages", type=int, default=20, help="passages of each question")
    parser.add_argument("--noise", type=float, default=1.0, help="share of hard distractors")
    parser.add_argument("--rich", type=float, default=0.0, help="share of facts and questions not put plainly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retriever", choices=tuple(_RETRIEVERS), default="bm25")
    parser.add_argument("--out", type=new_file, required=True)
    given = parser.parse_args(arguments)
    try:
        examples = evaluation_examples(
            given.split,
            given.questions,
            given.passages,
            given.noise,
            given.seed,
            rich=given.rich,
            retriever=given.retriever,
        )
    except InvalidInputError as error:
        parser.error(str(error))
    lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    given.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
