"""The stages of the training, and the batches each is made of."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from focus_rag.embedded import world
from focus_rag.embedded.names import Split
from focus_rag.embedded.questions import add_answer, question_row
from focus_rag.embedded.real_text import RealText, cloze
from focus_rag.embedded.rows import FOUND, LAYOUT, Conversation, Row, cut_by_length
from focus_rag.embedded.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Stage:
    """What one stretch of the training is made of.

    Attributes:
        name: Shown in the metrics.
        passages: Fewest and most passages of a context, easy filler included.
        hard: Fewest and most hard distractors among them.
        sentences: Fewest and most sentences of a passage.
        follow_ups: Fewest and most further questions on the same context.
        rich: Lowest and highest share of facts told and asked in one of the many sentence forms, not plainly; drawn for
            each row.
        missing: Share of contexts without the gold passage.
        unstated: Share of the further questions that ask for what no passage states.
        copying: Share of rows that repeat a random token sequence.
        copy_tokens: How many different tokens those are drawn from; 0 is the whole vocabulary. Copying appears
            sooner over few tokens, and carries over to all.
        pairs: Share of rows that list pairs of random keys and values and then ask for values by key: matching a
            name at its barest, with many answers for few tokens.
        idle: Share of rows in which there is nothing to look up.
        cloze: Share of rows made from real text, if there is any.
        long: Share of question rows at full length.
        long_passages: Fewest and most passages of those.
        long_hard: Fewest and most hard distractors among them.
        long_follow_ups: Fewest and most further questions on them.
        tokens: Tokens of a batch, padding included.
        until: Go on to the next stage once the running share of exact first answers (in a stage
            without questions: of predicted tokens) is this high.
        steps: Go on after this many steps at the latest; 0 is no limit.
        lr: Factor on the learning rate: copying takes a higher one than all that follows.
    """

    name: str
    passages: tuple[int, int] = (1, 4)
    hard: tuple[int, int] = (0, 2)
    sentences: tuple[int, int] = (1, 2)
    follow_ups: tuple[int, int] = (3, 6)
    rich: tuple[float, float] = (0.0, 1.0)
    missing: float = 0.1
    unstated: float = 0.0
    copying: float = 0.1
    copy_tokens: int = 0
    pairs: float = 0.0
    idle: float = 0.03
    cloze: float = 0.0
    long: float = 0.0
    long_passages: tuple[int, int] = (15, 40)
    long_hard: tuple[int, int] = (0, 3)
    long_follow_ups: tuple[int, int] = (3, 6)
    tokens: int = 3072
    until: float = 2.0
    steps: int = 0
    lr: float = 1.0


def _copying_row(rng: random.Random, vocab_size: int, n_tokens: int, bos: int) -> Row:
    """A random sequence, a short gap, the sequence again and so on; loss on repetitions but for their first token."""
    n_special = len(SPECIAL_TOKENS)
    top = min(vocab_size, n_special + n_tokens) if n_tokens else vocab_size
    length = rng.randint(4, 40)
    sequence = [rng.randrange(n_special, top) for _ in range(length)]
    tokens, weights = [bos, *sequence], [0.0] * (length + 1)
    for _ in range(rng.randint(1, 3)):
        gap = [rng.randrange(n_special, top) for _ in range(rng.randint(0, 12))]
        tokens += [*gap, *sequence]
        weights += [0.0] * (len(gap) + 1) + [0.3] * (length - 1)
    return Row(tokens, weights, None, "copying")


def _pairs_row(rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> Row:
    """Random keys with their values, and then turns that give a key and want its value."""
    n_special, top = len(SPECIAL_TOKENS), len(tokenizer)
    colon, newline, user, assistant, end = (
        tokenizer.convert_tokens_to_ids(token) for token in (":", "\u010a", "<|user|>", "<|assistant|>", "<|end|>")
    )

    def drawn(size: int) -> list[int]:
        return [rng.randrange(n_special, top) for _ in range(size)]

    # What the keys have in common stands between what tells them apart and the value, as the kind of company does.
    before, after, asked_after = (
        drawn(rng.choice((0, 0, 1))),
        drawn(rng.choice((0, 0, 1, 2, 3))),
        drawn(rng.choice((0, 0, 1, 2))),
    )
    size = rng.randint(1, 3)
    pairs = [([*before, *drawn(size), *after], drawn(rng.randint(1, 2))) for _ in range(rng.randint(2, 10))]
    asked = rng.sample(pairs, len(pairs))
    tokens = [tokenizer.bos_token_id, user]
    if rng.random() < 0.5:
        tokens += [*asked[0][0], *asked_after, newline]
    for key, found in pairs:
        tokens += [*key, colon, *found, newline]
    tokens.append(end)
    weights = [0.0] * len(tokens)
    for key, found in asked:
        turn = [user, *key, *asked_after, end, assistant]
        tokens += [*turn, *found, end]
        weights += [0.0] * len(turn) + [FOUND, *([1.0] * len(found))]
    return Row(tokens, weights, None, "pairs")


_CHAT = (
    ("Thank you.", "You are welcome."),
    ("Thanks a lot!", "You are welcome."),
    ("Hello.", "Hello. Ask me about your passages."),
    ("Hi there.", "Hello. Ask me about your passages."),
    ("Good morning.", "Hello. Ask me about your passages."),
    ("Who are you?", "A small reader of passages."),
    ("What can you do?", "I answer questions from passages."),
)


def _idle_row(
    rng: random.Random, stage: Stage, tokenizer: PreTrainedTokenizerFast, split: Split, real: RealText | None
) -> Row:
    """Text with nothing to look up, small talk, or a question without passages."""
    conversation = Conversation()
    telling = world.Telling(sentences=stage.sentences, rich=rng.uniform(*stage.rich))
    text = real.paragraph(rng) if real is not None and rng.random() < 0.5 else world.plain_text(rng, split, telling)
    choice = rng.random()
    if choice < 0.4:
        conversation.pieces.append((text, 0.05, 0.05))
        return conversation.row(tokenizer, "idle")
    if choice < 0.6:
        conversation.user(text)
        conversation.assistant("Noted.", 0.3)
    elif choice < 0.8:
        entity = world.new_entity(rng, split)
        key = rng.choice(list(entity.facts))
        conversation.user(world.question(rng, split, entity, key, telling))
        add_answer(conversation, entity, key, stated=False, weight=0.3)
    if choice >= 0.6:
        said, reply = rng.choice(_CHAT)
        conversation.user(said)
        conversation.assistant(reply, 0.3)
    return conversation.row(tokenizer, "idle")


def _cloze_row(rng: random.Random, stage: Stage, tokenizer: PreTrainedTokenizerFast, real: RealText) -> Row:
    """A sentence of real text with a span left out; the passage it is from stands among others."""
    question, answer, gold = cloze(rng, real)
    n = rng.randint(*stage.passages)
    passages = [gold, *(real.paragraph(rng)[:400] for _ in range(n - 1))]
    rng.shuffle(passages)
    conversation = Conversation()
    conversation.user(LAYOUT.user_content(question, passages)[0])
    conversation.assistant(answer)
    return conversation.row(tokenizer, "cloze")


def one_row(
    rng: random.Random, stage: Stage, tokenizer: PreTrainedTokenizerFast, real: RealText | None, split: Split = "train"
) -> Row:
    """One training sequence of the mix of `stage`."""
    draw = rng.random()
    if draw < stage.copying:
        return _copying_row(rng, len(tokenizer), stage.copy_tokens, tokenizer.bos_token_id)
    draw -= stage.copying
    if draw < stage.pairs:
        return _pairs_row(rng, tokenizer)
    draw -= stage.pairs
    if draw < stage.idle:
        return _idle_row(rng, stage, tokenizer, split, real)
    draw -= stage.idle
    if draw < stage.cloze and real is not None:
        return _cloze_row(rng, stage, tokenizer, real)
    is_long = rng.random() < stage.long
    return question_row(
        rng,
        tokenizer,
        split,
        world.Telling(sentences=stage.sentences, rich=rng.uniform(*stage.rich)),
        n_passages=rng.randint(*(stage.long_passages if is_long else stage.passages)),
        n_hard=rng.randint(*(stage.long_hard if is_long else stage.hard)),
        n_follow_ups=rng.randint(*(stage.long_follow_ups if is_long else stage.follow_ups)),
        missing=rng.random() < stage.missing,
        unstated=stage.unstated,
    )


class BatchStream:
    """Endless batches of similar length, the same for the same seed.

    Rows are drawn in pools, sorted by length and cut into batches of at most `stage.tokens` tokens, which are then
    shuffled: little padding, and no order to learn from.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, real: RealText | None, seed: int, longest: int = 4096
    ) -> None:
        self._tokenizer = tokenizer
        self._real = real
        self._rng = random.Random(seed)
        self._longest = longest
        self._stage: Stage | None = None
        self._ready: list[list[Row]] = []

    def next(self, stage: Stage) -> list[Row]:
        """The next batch of rows; a new stage drops what was drawn for the last one."""
        if stage is not self._stage or not self._ready:
            self._stage = stage
            self._ready = self._draw(stage)
        return self._ready.pop()

    def _draw(self, stage: Stage) -> list[list[Row]]:
        pool: list[Row] = []
        total = 0
        while total < 8 * stage.tokens:
            row = one_row(self._rng, stage, self._tokenizer, self._real)
            if len(row.tokens) <= self._longest:
                pool.append(row)
                total += len(row.tokens)
        batches = cut_by_length(pool, stage.tokens)
        if len(batches) > 1 and sum(len(row.tokens) for row in batches[-1]) < stage.tokens // 4:
            batches.pop()
        self._rng.shuffle(batches)
        return batches
