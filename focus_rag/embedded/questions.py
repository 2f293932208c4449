"""Training conversations: a question over passages of the generated world, and more questions as later turns."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from focus_rag.abstention import NOT_STATED
from focus_rag.embedded import world
from focus_rag.embedded.names import Split
from focus_rag.embedded.rows import LAYOUT, Conversation, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def add_answer(
    conversation: Conversation, entity: world.Entity, key: str, *, stated: bool = True, weight: float = 1.0
) -> None:
    """Add what the model is to say: the plain statement of a fact, with "not stated" in place of a value that no
    passage tells.

    So the reader decides where the value would stand, with the whole statement to look for, and what it attends to when
    it finds nothing is the instruction at the prompt's start.
    """
    value = entity.facts[key] if stated else NOT_STATED
    statement = world.plain_statement(entity, key, value)
    conversation.assistant(f"{value}.", weight, lead=statement.removesuffix(f"{value}.").rstrip())


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
    unstated: float = 0.0,
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
        unstated: Share of the further questions that ask for what no passage states.
    """
    head = world.new_entity(rng, split)
    key = rng.choice(list(head.facts))
    gold = None if missing else world.gold_passage(rng, split, head, key, telling)
    told = [] if gold is None else [gold]
    told += [
        world.distractor(rng, split, head, key, rng.choice(world.HARD_KINDS), telling)
        for _ in range(min(n_hard, n_passages - len(told)))
    ]
    while len(told) < n_passages:
        other = world.new_entity(rng, split, head.kind if rng.random() < 0.4 else None)
        told.append(world.passage(rng, split, other, world.some_keys(rng, other, telling), telling))
    rng.shuffle(told)
    conversation = Conversation()
    content, _ = LAYOUT.user_content(
        world.question(rng, split, head, key, telling), [passage.content for passage in told]
    )
    conversation.user(content)
    add_answer(conversation, head, key, stated=not missing)
    stated = {(passage.about.name, one) for passage in told for one in passage.keys}
    untold = [
        (passage.about, one)
        for passage in told
        for one in passage.about.facts
        if (passage.about.name, one) not in stated
    ]
    askable = [
        (passage.about, one)
        for passage in told
        for one in passage.keys
        if (passage.about.name, one) != (head.name, key)
    ]
    for entity, one in rng.sample(askable, min(len(askable), n_follow_ups)):
        is_stated = not untold or rng.random() >= unstated
        if not is_stated:
            entity, one = rng.choice(untold)
        conversation.user(world.question(rng, split, entity, one, telling))
        add_answer(conversation, entity, one, stated=is_stated)
    return conversation.row(tokenizer)
