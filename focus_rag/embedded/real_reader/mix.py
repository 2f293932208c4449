"""Rows drawn from the pack: questions over several passages, gaps and next sentences, plain text, the generated world.

Rows are put together from stored token ids. Because the tokenizer starts every word with a space and its patterns never
reach across the seams used here, the result is what tokenising the whole prompt would give
(`tests/test_real_reader.py` compares it with the library's own prompt).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from focus_rag.abstention import NOT_STATED
from focus_rag.embedded.batches import Stage, one_row
from focus_rag.embedded.real_reader.pack import Pack
from focus_rag.embedded.real_reader.words import Words, replaced
from focus_rag.embedded.rows import LAYOUT, Row
from focus_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from focus_rag.embedded.real_reader.pack import Array

Gap = tuple[list[int], list[int], tuple[int, int] | None]
"""Question, answer, and the tokens `[start, end)` of a sentence to take out of the passage, if one is."""
KINDS = ("question", "gap", "language", "world")


class Mix(BaseModel):
    """What a stretch of the training is made of.

    Attributes:
        name: Shown in the metrics.
        tokens: Tokens after which the next stretch begins; None for the last.
        shares: Share of the tokens of each kind of row: `question` (real questions), `gap` (gaps and next sentences of
            real paragraphs), `language` (paragraphs as they are), `world` (the generated world).
        sources: Share of the question rows by source, in the order of the pack's sources; sources beyond count 0.
        passages: Fewest and most passages, the gold one among them.
        long: Share of rows with `long_passages` passages.
        long_passages: Fewest and most passages of those; as many as fit the window.
        hard: Share of distractors taken from what a retriever ranks high for the question.
        near: Share of the other distractors taken from the gold paragraph's own article.
        missing: Share of question rows without the gold passage, whose answer is "not stated".
        exchanged: Share of questions whose answer is a name or a number that get another one, in the passage as in the
            answer: the same question can then not be answered from memory.
        thinned: Share of question rows whose first question lacks some words, so that no wording is learned by heart.
        follow_ups: Fewest and most further questions, as later turns on the passages shown.
        titled: Share of rows whose passages have their titles.
        next_sentence: Share of self-supervised questions that ask for the sentence that follows one.
        removed: Share of first gaps, of paragraphs that name something in two sentences, that ask for such a name with
            its sentence taken out of the passage: it then has to be read in the other one rather than matched
            (recurring span selection, Ram et al. 2021).
        loose: Share of gaps asked as a question: a question word by what is missing, then some words of the sentence,
            not quite in order.
        language_weight: Loss weight of plain text against an answer's tokens.
        read_along: Share of question rows whose passages carry that weight too, so that their words are learned where
            they are read.
        language_tokens: Fewest and most tokens of a row of plain text.
        world: The generated part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "full length"
    tokens: int | None = None
    shares: dict[str, float] = Field(default={"question": 0.45, "gap": 0.15, "language": 0.05, "world": 0.35})
    sources: tuple[float, ...] = (0.9, 0.08, 0.02)
    passages: tuple[int, int] = (1, 8)
    long: float = 0.04
    long_passages: tuple[int, int] = (9, 20)
    hard: float = 0.6
    near: float = 0.5
    missing: float = 0.05
    exchanged: float = 0.5
    thinned: float = 0.3
    follow_ups: tuple[int, int] = (0, 5)
    titled: float = 0.9
    next_sentence: float = 0.15
    removed: float = 0.5
    loose: float = 0.5
    language_weight: float = 0.05
    read_along: float = 0.1
    language_tokens: tuple[int, int] = (128, 2048)
    world: Stage = Stage(
        "world", rich=(0.2, 1.0), missing=0.06, unstated=0.08, passages=(1, 8), hard=(0, 6), sentences=(1, 4),
        follow_ups=(4, 8),
        long=0.08, long_passages=(10, 24), long_hard=(0, 8), long_follow_ups=(8, 16), copying=0.01,
    )  # fmt: skip


def curriculum() -> tuple[Mix, ...]:
    """Copying first, over few tokens and then all, then the words of real paragraphs, then few passages, then all of
    it.
    """
    few = Stage("copying few tokens", copying=1.0, copy_tokens=256, idle=0.0)
    copying = Stage("copying and pairs", copying=0.5, pairs=0.5, idle=0.0)
    plain = Stage("plain", rich=(0.0, 0.8), missing=0.05, unstated=0.05, follow_ups=(4, 8), copying=0.05)
    return (
        Mix(name="copying few tokens", tokens=6_000_000, shares={"world": 1.0}, world=few),
        Mix(name="copying and pairs", tokens=12_000_000, shares={"world": 1.0}, world=copying),
        Mix(
            name="words",
            tokens=60_000_000,
            shares={"language": 0.5, "gap": 0.35, "world": 0.15},
            passages=(1, 2),
            long=0.0,
            follow_ups=(1, 6),
            removed=1.0,
            language_weight=0.3,
            world=plain,
        ),
        Mix(
            name="few passages",
            tokens=100_000_000,
            shares={"question": 0.4, "gap": 0.25, "language": 0.05, "world": 0.3},
            passages=(1, 3),
            long=0.0,
            missing=0.03,
            follow_ups=(1, 6),
            read_along=0.3,
            world=plain,
        ),
        Mix(),
    )


_ASKING = {
    "number": ("When", "How many", "In what year", "How much", "What number"),
    "name": ("Who", "What", "Where", "Which", "What is the name"),
}


class Template:
    """The fixed token sequences of the prompt, as the tokenizer cuts them."""

    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer

        def alone(text: str) -> list[int]:
            return list(backend.encode(text, add_special_tokens=False).ids)

        def after_text(text: str) -> list[int]:
            return alone(f"a{text}")[len(alone("a")) :]

        self.start = [tokenizer.bos_token_id]
        self.user, self.assistant, self.end = (
            [tokenizer.convert_tokens_to_ids(f"<|{name}|>")] for name in ("user", "assistant", "end")
        )
        self.opening = alone(f"{LAYOUT.instruction}\nQuestion:")
        self.closing = after_text("\n\nQuestion:")
        self.labels = [after_text(f"\n\n[{number}]") for number in range(1, 101)]
        self.paragraph_break = after_text("\n")
        self.not_stated = alone(NOT_STATED)
        self.fill, self.gap, self.follows = (
            alone("Fill the gap:"),
            alone("___"),
            alone("Which sentence follows this one:"),
        )
        self.asking = {kind: [alone(one) for one in words] for kind, words in _ASKING.items()}
        self.question_mark = after_text("?")

    def first_turn(self, question: list[int], passages: list[list[int]]) -> list[int]:
        """Everything up to what the model says first."""
        tokens = self.start + self.user + self.opening + question
        for label, passage in zip(self.labels, passages, strict=False):
            tokens += label + passage
        return tokens + self.closing + question + self.end + self.assistant


class RowMaker:
    """Draws rows from a pack.

    Args:
        pack: The data.
        held_out: Draw from what is kept out of the training instead.
        longest: Tokens that a row may have.
    """

    def __init__(self, pack: Pack, *, held_out: bool = False, longest: int = 4096) -> None:
        self.pack, self.longest = pack, longest
        self.template = Template(pack.tokenizer)
        self.words = Words(pack.tokenizer)
        self._texts = [i for i, held in enumerate(pack.held_texts.tolist()) if held == held_out]
        self._allowed = set(self._texts)
        self._by_source: dict[int, list[int]] = {}
        self._asked_on: dict[int, list[int]] = {}
        for question, (source, held) in enumerate(zip(pack.source.tolist(), pack.held_questions.tolist(), strict=True)):
            if held == held_out:
                self._by_source.setdefault(source, []).append(question)
                self._asked_on.setdefault(int(pack.gold[question]), []).append(question)
        self._of_kind: dict[str, list[int]] = {}
        for question in sorted(one for found in self._by_source.values() for one in found):
            self._of_kind.setdefault(self.words.kind(pack.answers[question].tolist()), []).append(question)
        if not self._texts or not self._by_source:
            raise InvalidInputError(
                f"The pack has no {'held-out ' if held_out else ''}paragraphs or questions: build it from more "
                "articles."
            )

    def row(self, rng: random.Random, kind: str, mix: Mix) -> Row:
        """One row of a kind of `KINDS`."""
        if kind == "question":
            return self.question_row(rng, mix)
        if kind == "gap":
            return self._gap_row(rng, mix)
        if kind == "language":
            return self._language_row(rng, mix)
        return one_row(rng, mix.world, self.pack.tokenizer, None)

    def question_row(self, rng: random.Random, mix: Mix) -> Row:
        """A real question over its paragraph and distractors, and more questions on the paragraphs shown."""
        pack = self.pack
        sources = [source for source in self._by_source if source < len(mix.sources)] or list(self._by_source)
        weights = [mix.sources[source] if source < len(mix.sources) else 1.0 for source in sources]
        question = rng.choice(self._by_source[rng.choices(sources, weights)[0]])
        gold, answer = int(pack.gold[question]), pack.answers[question]
        missing = rng.random() < mix.missing
        asked = pack.questions[question].tolist()
        asked = self.words.thinned(rng, asked, 0.15) if rng.random() < mix.thinned else asked
        other = None if missing else self._other_answer(rng, mix, answer, gold)
        answers = [answer] if other is None else [answer, other]
        shown = self._shown(
            rng, mix, None if missing else gold, gold, answers, pack.hard[question].tolist(), len(asked)
        )
        contents = self._contents(rng, mix, shown)
        if other is not None:
            place = shown.index(gold)
            contents[place] = replaced(contents[place], answer.tolist(), other.tolist())
        said = self.template.not_stated if missing else (answer if other is None else other).tolist()
        askable = [
            one
            for text in shown
            for one in self._asked_on.get(text, ())
            if one != question and self._stands(one, shown, contents)
        ]
        further = rng.sample(askable, min(len(askable), rng.randint(*mix.follow_ups)))
        turns = [(asked, said), *((pack.questions[one].tolist(), pack.answers[one].tolist()) for one in further)]
        along = mix.language_weight if rng.random() < mix.read_along else 0.0
        return self._conversation(shown, contents, turns, "question", along)

    def _other_answer(self, rng: random.Random, mix: Mix, answer: Array, gold: int) -> Array | None:
        """Another name for a name, another number for a number, that does not stand in the paragraph; None where it is
        kept, as in a paragraph that has it in other tokens, after a bracket, say.
        """
        kind = self.words.kind(answer.tolist())
        if kind == "phrase" or rng.random() >= mix.exchanged:
            return None
        other, text = self.pack.answers[rng.choice(self._of_kind[kind])], self.pack.texts[gold].tolist()
        is_kept = replaced(text, answer.tolist(), other.tolist()) == text
        return None if is_kept or _holds(self.pack.texts[gold], other) else other

    def _stands(self, question: int, shown: list[int], contents: list[list[int]]) -> bool:
        """Whether the answer of a question still stands in its passage as it is shown."""
        import numpy as np

        return _holds(
            np.asarray(contents[shown.index(int(self.pack.gold[question]))], self.pack.answers[question].dtype),
            self.pack.answers[question],
        )

    def _gap_row(self, rng: random.Random, mix: Mix) -> Row:
        """A gap to fill or a sentence to go on from, made from a paragraph, and more of them."""
        text, (question, answer, removed) = self._first_gap(rng, mix)
        shown = self._shown(rng, mix, text, text, [], [], len(question))
        contents = self._contents(rng, mix, shown)
        if removed is not None:
            place = shown.index(text)
            before = len(contents[place]) - len(self.pack.texts[text])
            contents[place] = contents[place][: before + removed[0]] + contents[place][before + removed[1] :]
        turns = [(question, answer)]
        askable = [one for one in shown if one != text or removed is None]
        for _ in range(rng.randint(*mix.follow_ups) if askable else 0):
            more = self._gap(rng, mix, rng.choice(askable), removed=0.0)
            if more is not None:
                turns.append(more[:2])
        return self._conversation(shown, contents, turns, "gap")

    def _first_gap(self, rng: random.Random, mix: Mix) -> tuple[int, Gap]:
        for _ in range(1000):
            text = rng.choice(self._texts)
            found = self._gap(rng, mix, text, mix.removed)
            if found is not None:
                return text, found
        raise InvalidInputError(
            "The pack's paragraphs hold no names, numbers or neighbouring sentences to ask for: give it more text."
        )

    def _gap(self, rng: random.Random, mix: Mix, text: int, removed: float) -> Gap | None:
        """A gap or next sentence of a paragraph; None where the draw finds nothing to ask for."""
        tokens = self.pack.texts[text].tolist()
        starts = self.pack.sentences[text].tolist()
        ends = [*starts[1:], len(tokens)]
        if rng.random() < mix.next_sentence:
            if len(starts) < 2:
                return None
            i = rng.randrange(len(starts) - 1)
            return self.template.follows + tokens[starts[i] : ends[i]], tokens[starts[i + 1] : ends[i + 1]], None
        spans = self.pack.fillings[text].tolist()
        places = list(zip(spans[::2], spans[1::2], strict=True))
        if not places:
            return None

        def sentence(place: tuple[int, int]) -> tuple[int, int]:
            return max((one for one in starts if one <= place[0]), default=0), min(
                (one for one in starts if one > place[0]), default=len(tokens)
            )

        def stands_elsewhere(place: tuple[int, int]) -> bool:
            (start, end), answer, whole = sentence(place), tokens[slice(*place)], self.pack.texts[text]
            return _holds(whole[:start], answer) or _holds(whole[end:], answer)

        recurring = [place for place in places if stands_elsewhere(place)] if rng.random() < removed else []
        first, last = rng.choice(recurring or places)
        start, end = sentence((first, last))
        answer, out = tokens[first:last], (start, end) if recurring else None
        kind = self.words.kind(answer)
        if kind != "phrase" and rng.random() < mix.loose:
            rest = self.words.shaken(rng, self.words.thinned(rng, tokens[start:first] + tokens[last:end], 0.35))
            return rng.choice(self.template.asking[kind]) + rest + self.template.question_mark, answer, out
        return self.template.fill + tokens[start:first] + self.template.gap + tokens[last:end], answer, out

    def _language_row(self, rng: random.Random, mix: Mix) -> Row:
        """Paragraphs as they follow each other in their article."""
        text, wanted = rng.choice(self._texts), rng.randint(*mix.language_tokens)
        tokens = list(self.template.start)
        title = self.pack.title_of[text]
        while (
            len(tokens) < wanted
            and text < len(self.pack.texts)
            and self.pack.title_of[text] == title
            and text in self._allowed
        ):
            tokens += (self.template.paragraph_break if len(tokens) > 1 else []) + self.pack.texts[text].tolist()
            text += 1
        tokens = tokens[: min(wanted, self.longest)]
        return Row(tokens, [0.0] + [mix.language_weight] * (len(tokens) - 1), None, "language")

    def _shown(
        self,
        rng: random.Random,
        mix: Mix,
        first: int | None,
        gold: int,
        answers: list[Array],
        hard: list[int],
        question: int,
    ) -> list[int]:
        """The paragraphs of a row in random order: `first` and distractors, as many as are wanted and fit."""
        count = rng.randint(*(mix.long_passages if rng.random() < mix.long else mix.passages))
        shown = [] if first is None else [first]
        room = self.longest - 2 * question - len(self.template.opening) - 400
        room -= len(self.pack.texts[first]) if first is not None else 0
        near = self.pack.texts_titled[int(self.pack.title_of[gold])]
        hard = [one for one in hard if one in self._allowed]
        rng.shuffle(hard)
        for _ in range(8 * count):
            if len(shown) >= count:
                break
            if hard and rng.random() < mix.hard:
                other = hard.pop()
            else:
                other = rng.choice(near if rng.random() < mix.near else self._texts)
            size = len(self.pack.texts[other]) + 20
            usable = other in self._allowed and other not in shown and other != gold and size <= room
            if usable and not any(_holds(self.pack.texts[other], answer) for answer in answers):
                shown.append(other)
                room -= size
        rng.shuffle(shown)
        return shown

    def _contents(self, rng: random.Random, mix: Mix, shown: list[int]) -> list[list[int]]:
        titled = rng.random() < mix.titled
        titles = [self.pack.titles[int(self.pack.title_of[text])].tolist() if titled else [] for text in shown]
        return [title + self.pack.texts[text].tolist() for title, text in zip(titles, shown, strict=True)]

    def _conversation(
        self,
        shown: list[int],
        contents: list[list[int]],
        turns: list[tuple[list[int], list[int]]],
        source: str,
        along: float = 0.0,
    ) -> Row:
        """Tokens with weight on what the model says, and `along` on the passages; later turns only while they fit."""
        template = self.template
        tokens = (
            template.first_turn(turns[0][0], contents)
            if shown
            else template.start + template.user + turns[0][0] + template.end + template.assistant
        )
        weights = [0.0] * len(tokens)
        if shown and along:
            begin = len(template.start + template.user + template.opening + turns[0][0])
            end = len(tokens) - len(template.closing + turns[0][0] + template.end + template.assistant)
            weights[begin:end] = [along] * (end - begin)
        said = turns[0][1] + template.end
        first = (len(tokens), len(tokens) + len(said))
        tokens, weights = tokens + said, weights + [1.0] * len(said)
        for question, answer in turns[1:]:
            asked, said = template.user + question + template.end + template.assistant, answer + template.end
            if len(tokens) + len(asked) + len(said) > self.longest:
                break
            tokens += asked + said
            weights += [0.0] * len(asked) + [1.0] * len(said)
        return Row(tokens, weights, first, source)


def _holds(text: Array, wanted: Any) -> bool:
    """Whether a token sequence stands in a text. A hit that begins between two tokens counts too: it only rules out a
    distractor.
    """
    import numpy as np

    return np.asarray(wanted, dtype=text.dtype).tobytes() in text.tobytes()
