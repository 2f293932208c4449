"""From the generated world to rows of tokens with a loss weight for each.

A conversation is built as a list of (text, weight) pieces, so that the weighted pieces are exactly what the model has
to produce: answers and their end token.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from focus_rag.embedded import names, world
from focus_rag.embedded.names import Split
from focus_rag.embedded.real_text import RealText, cloze
from focus_rag.embedded.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NOT_STATED = "not stated"
# Finding where an answer begins is the task; the rest of it is copying, which the model can do by then.
FIRST_TOKEN = 4.0
INSTRUCTION = "Answer the question from the passages. If they do not hold the answer, say: not stated."


@dataclass(frozen=True)
class Stage:
    """What one stretch of the training is made of.

    Attributes:
        name: Shown in the metrics.
        passages: Fewest and most passages of a context, easy filler included.
        hard: Fewest and most hard distractors.
        sentences: Fewest and most sentences of a passage.
        follow_ups: Fewest and most further questions on the same context.
        terse: Share of question rows told in notes instead of sentences.
        alike: Share of question rows whose other passages state the same attribute of entities of the same kind, so
            that only the entity's name tells which passage answers.
        missing: Share of contexts without the gold passage.
        copying: Share of rows that repeat a random token sequence.
        copy_tokens: How many different tokens those are drawn from; 0 is the whole vocabulary. Copying appears
            sooner over few tokens, and carries over to all.
        pairs: Share of rows that list pairs of random keys and values and then ask for values by key: matching a
            name at its barest, with many answers for few tokens.
        random_pairs: Share of those that are random tokens, not names of the world.
        plain: Share of rows in which there is nothing to look up.
        plain_register: Share of rows in the plain register (`focus_rag.embedded.plain`).
        cloze: Share of rows made from real text, if there is any.
        long: Share of question rows at full length: `long_passages` passages, the hard ones as above.
        long_passages: Fewest and most passages of those.
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
    terse: float = 0.0
    alike: float = 0.0
    missing: float = 0.1
    copying: float = 0.1
    copy_tokens: int = 0
    pairs: float = 0.0
    random_pairs: float = 0.2
    plain: float = 0.03
    plain_register: float = 0.0
    cloze: float = 0.0
    long: float = 0.0
    long_passages: tuple[int, int] = (15, 40)
    tokens: int = 3072
    until: float = 2.0
    steps: int = 0
    lr: float = 1.0


@dataclass
class Row:
    """One training sequence.

    Attributes:
        tokens: Token ids.
        weights: Loss weight of predicting each token (the first is never predicted).
        first_answer: Start and end of the first answer in `tokens`, for the running accuracy; None if there is none.
        source: Kind of row, for the metrics.
    """

    tokens: list[int]
    weights: list[float]
    first_answer: tuple[int, int] | None = None
    source: str = "question"


@dataclass
class Conversation:
    """Pieces of text with their loss weights, in the layout of the chat template."""

    pieces: list[tuple[str, float]] = field(default_factory=list)

    def user(self, text: str) -> None:
        self.pieces += [("<|user|>", 0.0), (text, 0.0), ("<|end|>", 0.0)]

    def assistant(self, text: str, weight: float = 1.0) -> None:
        self.pieces += [("<|assistant|>", 0.0), (text, weight), ("<|end|>", weight)]

    def row(self, tokenizer: PreTrainedTokenizerFast, source: str = "question") -> Row:
        backend = tokenizer.backend_tokenizer
        tokens, weights = [tokenizer.bos_token_id], [0.0]
        first: tuple[int, int] | None = None
        for encoding, (_, weight) in zip(
            backend.encode_batch_fast([text for text, _ in self.pieces], add_special_tokens=False), self.pieces, strict=True
        ):
            spoken = weight and encoding.ids[0] != tokenizer.eos_token_id
            if spoken and first is None:
                first = (len(tokens), len(tokens) + len(encoding.ids) + 1)
            tokens += encoding.ids
            weights += [weight] * len(encoding.ids)
            if spoken and source != "plain":
                weights[-len(encoding.ids)] *= FIRST_TOKEN
        return Row(tokens, weights, first, source)


def question_content(question: str, passages: list[str]) -> str:
    """The user message: the question before and after the numbered passages."""
    if not passages:
        return question
    numbered = "\n\n".join(f"[{i}] {text}" for i, text in enumerate(passages, start=1))
    return f"{INSTRUCTION}\nQuestion: {question}\n\n{numbered}\n\nQuestion: {question}"


def _question_row(rng: random.Random, stage: Stage, tokenizer: PreTrainedTokenizerFast, split: Split) -> Row:
    telling = world.Telling(sentences=stage.sentences, terse=rng.random() < stage.terse)
    full_length = rng.random() < stage.long
    n = rng.randint(*(stage.long_passages if full_length else stage.passages))
    entity = world.new_entity(rng, split)
    key = rng.choice(list(entity.facts))
    missing = rng.random() < stage.missing
    told: list[tuple[world.WorldPassage, world.Entity]] = []
    if not missing:
        told.append((world.gold_passage(rng, split, entity, key, telling), entity))
    for _ in range(min(n - len(told), rng.randint(*stage.hard))):
        kind = rng.choice(world.HARD_KINDS)
        told.append((world.distractor(rng, split, entity, key, kind, telling), entity))
    askable = [(entity, key)]
    alike = rng.random() < stage.alike
    while len(told) < n:
        other = world.new_entity(rng, split, entity.kind if alike else None)
        keys = world.some_keys(rng, other, telling)
        if alike and key not in keys:
            keys[0] = key
        told.append((world.passage(rng, split, other, keys, telling), other))
        askable += [(other, other_key) for other_key in keys]
    rng.shuffle(told)
    conversation = Conversation()
    question = world.question(rng, split, entity, key, terse=telling.terse)
    conversation.user(question_content(question, [passage.content for passage, _ in told]))
    conversation.assistant(NOT_STATED if missing else entity.facts[key], weight=0.5 if missing else 1.0)
    stated = {fact for passage, _ in told for fact in passage.facts}
    askable = [(one, k) for one, k in askable[1:] if (one.name, k) in stated]
    askable += [(entity, k) for k in entity.facts if k != key and (entity.name, k) in stated]
    for one, k in rng.sample(askable, min(len(askable), rng.randint(*stage.follow_ups))):
        conversation.user(world.question(rng, split, one, k, terse=telling.terse))
        conversation.assistant(one.facts[k])
    return conversation.row(tokenizer)


def _copying_row(rng: random.Random, vocab_size: int, n_tokens: int, bos: int) -> Row:
    """A random sequence, a short gap, the sequence again, and so on; loss on the repetitions but for their first token."""
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
    before, after, asked_after = drawn(rng.choice((0, 0, 1))), drawn(rng.choice((0, 0, 1, 2, 3))), drawn(rng.choice((0, 0, 1, 2)))
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
        weights += [0.0] * len(turn) + [FIRST_TOKEN, *([1.0] * len(found))]
    return Row(tokens, weights, None, "pairs")


_LISTINGS = ("{e}: {v}\n", "{e}: {k} {v}\n", "[{i}] {e}: {k} {v}.\n\n", "[{i}] {e}: {v}.\n\n", "{k} of {e}: {v}\n")
_REQUESTS = ("{e}", "{e}?", "Question: {e}?", "{e}: {k}?", "{k} of {e}?", "What is the {k} of {e}?", "Which {k} does {e} have?")


def _named_pairs_row(rng: random.Random, tokenizer: PreTrainedTokenizerFast, split: Split) -> Row:
    """The same with names of the world: entities of one kind, one attribute, ever more words around the name."""
    kind = rng.choice(list(names.ENTITY_NAMES))
    told = [world.new_entity(rng, split, kind) for _ in range(rng.randint(2, 8))]
    key = rng.choice(list(told[0].facts))
    listing, request = rng.choice(_LISTINGS), rng.choice(_REQUESTS)
    lines = [listing.format(i=i, e=one.name, k=key, v=one.facts[key]) for i, one in enumerate(told, start=1)]
    asked = [(request.format(e=one.name, k=key), one.facts[key]) for one in rng.sample(told, len(told))]
    conversation = Conversation()
    if rng.random() < 0.5:
        conversation.user(f"{asked[0][0]}\n\n{''.join(lines)}{asked[0][0]}")
    else:
        conversation.user("".join(lines) + asked[0][0])
    conversation.assistant(asked[0][1])
    for question, answer in asked[1:]:
        conversation.user(question)
        conversation.assistant(answer)
    return conversation.row(tokenizer, "pairs")


_CHAT = (
    ("Thank you.", "You are welcome."),
    ("Thanks a lot!", "You are welcome."),
    ("Hello.", "Hello. Ask me about your passages."),
    ("Hi there.", "Hello. Ask me about your passages."),
    ("Good morning.", "Hello. Ask me about your passages."),
    ("Who are you?", "A small reader of passages."),
    ("What can you do?", "I answer questions from passages."),
)


def _plain_row(rng: random.Random, stage: Stage, tokenizer: PreTrainedTokenizerFast, split: Split, real: RealText | None) -> Row:
    """Text with nothing to look up, small talk, or a question without passages."""
    conversation = Conversation()
    telling = world.Telling(sentences=stage.sentences)
    text = real.paragraph(rng) if real is not None and rng.random() < 0.5 else world.plain_text(rng, split, telling)
    choice = rng.random()
    if choice < 0.4:
        conversation.pieces.append((text, 0.05))
        return conversation.row(tokenizer, "plain")
    if choice < 0.6:
        conversation.user(text)
        conversation.assistant("Noted.", 0.3)
    elif choice < 0.8:
        entity = world.new_entity(rng, split)
        conversation.user(world.question(rng, split, entity, rng.choice(list(entity.facts))))
        conversation.assistant(NOT_STATED, 0.3)
    if choice >= 0.6:
        said, reply = rng.choice(_CHAT)
        conversation.user(said)
        conversation.assistant(reply, 0.3)
    return conversation.row(tokenizer, "plain")


def _cloze_row(rng: random.Random, stage: Stage, tokenizer: PreTrainedTokenizerFast, real: RealText) -> Row:
    """A sentence of real text with a span left out; the passage it is from stands among others."""
    question, answer, gold = cloze(rng, real)
    n = rng.randint(*stage.passages)
    passages = [gold, *(real.paragraph(rng)[:400] for _ in range(n - 1))]
    rng.shuffle(passages)
    conversation = Conversation()
    conversation.user(question_content(question, passages))
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
    if draw < stage.plain_register:
        from focus_rag.embedded.plain import plain_row  # that module builds on this one

        return plain_row(rng, tokenizer, split, stage.passages, stage.follow_ups)
    draw -= stage.plain_register
    if draw < stage.pairs:
        return _pairs_row(rng, tokenizer) if rng.random() < stage.random_pairs else _named_pairs_row(rng, tokenizer, split)
    draw -= stage.pairs
    if draw < stage.plain:
        return _plain_row(rng, stage, tokenizer, split, real)
    draw -= stage.plain
    if draw < stage.cloze and real is not None:
        return _cloze_row(rng, stage, tokenizer, real)
    return _question_row(rng, stage, tokenizer, split)


class BatchStream:
    """Endless batches of similar length, the same for the same seed.

    Rows are drawn in pools, sorted by length and cut into batches of at most `stage.tokens` tokens, which are then
    shuffled: little padding, and no order to learn from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, real: RealText | None, seed: int, longest: int = 4096) -> None:
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
        pool.sort(key=lambda row: len(row.tokens))
        batches: list[list[Row]] = [[]]
        for row in pool:
            if batches[-1] and len(row.tokens) * (len(batches[-1]) + 1) > stage.tokens:
                batches.append([])
            batches[-1].append(row)
        if len(batches) > 1 and sum(len(row.tokens) for row in batches[-1]) < stage.tokens // 4:
            batches.pop()
        self._rng.shuffle(batches)
        return batches
