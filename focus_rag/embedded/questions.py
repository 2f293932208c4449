"""Training conversations: a question over passages of the generated world, and more questions as later turns."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from focus_rag.embedded import world
from focus_rag.embedded.names import Split
from focus_rag.embedded.rows import NOT_STATED, Conversation, Row, question_content

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def _answer(conversation: Conversation, entity: world.Entity, key: str) -> None:
    """Add the plain statement of a fact as what the model is to say."""
    statement = world.plain_statement(entity, key)
    value = f"{entity.facts[key]}."
    conversation.assistant(value, lead=statement.removesuffix(value).rstrip())


def question_row(
    rng: random.Random,
    tokenizer: PreTrainedTokenizerFast,
    split: Split,
    telling: world.Telling,
    *,
    n_passages: int,
    n_hard: int,
    n_follow_ups: int,
    missing: bool,
) -> Row:
    """One conversation.

    Args:
        rng: Source of all choices.
        tokenizer: Turns it into tokens.
        split: Whose names and sentence forms to use.
        telling: How richly passages are told and questions are asked.
        n_passages: Passages shown.
        n_hard: How many of them are distractors made for the first question; the rest are on entities of the
            same kind or on anything else.
        n_follow_ups: Further questions, on any passage shown.
        missing: Whether the passage that answers the first question is left out.
    """
    head = world.new_entity(rng, split)
    key = rng.choice(list(head.facts))
    told = [] if missing else [world.gold_passage(rng, split, head, key, telling)]
    told += [
        world.distractor(rng, split, head, key, rng.choice(world.HARD_KINDS), telling)
        for _ in range(min(n_hard, n_passages - len(told)))
    ]
    while len(told) < n_passages:
        other = world.new_entity(rng, split, head.kind if rng.random() < 0.4 else None)
        told.append(world.passage(rng, split, other, world.some_keys(rng, other, telling), telling))
    rng.shuffle(told)
    conversation = Conversation()
    content = question_content(world.question(rng, split, head, key, telling), [passage.content for passage in told])
    conversation.user(content)
    if missing:
        conversation.assistant(NOT_STATED)
    else:
        _answer(conversation, head, key)
    askable = [
        (passage.about, one) for passage in told for one in passage.keys if (passage.about.name, one) != (head.name, key)
    ]
    for entity, one in rng.sample(askable, min(len(askable), n_follow_ups)):
        conversation.user(world.question(rng, split, entity, one, telling))
        _answer(conversation, entity, one)
    return conversation.row(tokenizer)
