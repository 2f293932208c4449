"""The plain register of the world: one short statement for each fact, and answers in whole sentences.

A reader learns it within minutes, because an answer repeats the statement that it is read from. What can go wrong is what goes wrong
in real retrieval: another attribute of the same entity, the same attribute of an entity of similar name.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from focus_rag.embedded import world
from focus_rag.embedded.batches import NOT_STATED, Conversation, Row, question_content
from focus_rag.embedded.names import Split
from focus_rag.embedded.retrieval import BM25
from focus_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def plain_passage(entity: world.Entity, keys: list[str]) -> str:
    """Statements of some facts of an entity."""
    return " ".join(plain_answer(entity, key) for key in keys)


def plain_question(entity: world.Entity, key: str) -> str:
    """A question for one fact."""
    return f"What is the {key} of {entity.name}?"


def plain_answer(entity: world.Entity, key: str) -> str:
    """The statement of one fact, which is also the answer to its question."""
    return f"The {key} of {entity.name} is {entity.facts[key]}."


def plain_row(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, split: Split, passages: tuple[int, int], follow_ups: tuple[int, int]
) -> Row:
    """One training conversation: a question before and after the passages, more questions as later turns."""
    head = world.new_entity(rng, split)
    told: list[tuple[world.Entity, list[str]]] = []
    for number in range(rng.randint(*passages)):
        draw = rng.random()
        if number and draw < 0.35:
            entity = world.sibling(rng, split, head)
        elif number and draw < 0.6:
            entity = world.new_entity(rng, split, head.kind)
        else:
            entity = head if not number else world.new_entity(rng, split)
        told.append((entity, rng.sample(list(entity.facts), rng.randint(1, 3))))
    askable = [(entity, key) for entity, keys in told for key in keys]
    missing = rng.random() < 0.06
    asked = [(head, told[0][1][0]), *rng.sample(askable, min(len(askable), rng.randint(*follow_ups)))]
    shown = told[1:] if missing else told
    rng.shuffle(shown)
    conversation = Conversation()
    texts = [f"{entity.name}: {plain_passage(entity, keys)}" for entity, keys in shown]
    conversation.user(question_content(plain_question(*asked[0]), texts))
    if missing:
        conversation.assistant(NOT_STATED)
        return conversation.row(tokenizer)
    conversation.assistant(plain_answer(*asked[0]))
    for entity, key in asked[1:]:
        conversation.user(plain_question(entity, key))
        conversation.assistant(plain_answer(entity, key))
    return conversation.row(tokenizer)


@lru_cache(maxsize=4)
def _corpus(split: Split, families: int = 150) -> tuple[list[tuple[world.Entity, list[str]]], BM25]:
    rng = random.Random(f"plain corpus {split}")
    told: list[tuple[world.Entity, list[str]]] = []
    for _ in range(families):
        head = world.new_entity(rng, split)
        for entity in (head, *(world.sibling(rng, split, head) for _ in range(5))):
            keys = list(entity.facts)
            rng.shuffle(keys)
            told += [(entity, keys[:2]), (entity, keys[2:4])]
    return told, BM25([f"{entity.name}: {plain_passage(entity, keys)}" for entity, keys in told])


def plain_examples(split: Split, n: int, n_passages: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions over a generated corpus with the gold passage among those that BM25 ranks highest.

    Args:
        split: Whose entities; no entity belongs to two splits.
        n: Number of questions.
        n_passages: Passages of each, in retrieval order.
        seed: Another seed asks other questions.

    Returns:
        Dicts with `id`, `question`, `answers` and `passages`; a passage has `text`, `title`, `score` and `is_gold`.

    Raises:
        InvalidInputError: `n_passages` below 1.
    """
    if n_passages < 1:
        raise InvalidInputError(f"n_passages must be at least 1, got {n_passages}.")
    told, retriever = _corpus(split)
    rng = random.Random(f"plain questions {split} {seed}")
    examples = []
    for number in range(n):
        gold = rng.randrange(len(told))
        entity, keys = told[gold]
        question = plain_question(entity, rng.choice(keys))
        key = question.removeprefix("What is the ").split(" of ")[0]
        scores = retriever.scores(question)
        ranked = [int(i) for i in (-scores).argsort(kind="stable") if i != gold][: n_passages - 1]
        chosen = sorted([gold, *ranked], key=lambda i: -scores[i])
        examples.append(
            {
                "id": f"plain-{split}-{seed}-{number}",
                "question": question,
                "answers": [entity.facts[key]],
                "passages": [
                    {"text": plain_passage(*told[i]), "title": told[i][0].name, "score": float(scores[i]), "is_gold": i == gold}
                    for i in chosen
                ],
            }
        )
    return examples
