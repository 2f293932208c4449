"""Make the data pack: `python -m focus_rag.embedded.real_reader.build_pack --squad FILE --questions FILE --out DIR`.

Everything is tokenised here, once, so that the machine with the GPU needs neither the files nor the time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focus_rag.embedded import names, world
from focus_rag.embedded.arguments import folder, whole_number
from focus_rag.embedded.real_reader.pack import Pack, Ragged, begin_pack
from focus_rag.embedded.real_reader.sources import Asked, Sources, holds
from focus_rag.embedded.real_text import fillings, sentence_ranges
from focus_rag.embedded.tokenizer import load_tokenizer, train_tokenizer
from focus_rag.errors import InvalidInputError
from focus_rag.search.bm25 import BM25

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

    from focus_rag.embedded.real_reader.pack import Array

_CHUNK = 2000
_SPACE = "\u0120"
"""The token of a space that stands alone."""


def build_pack(
    sources: Sources,
    *,
    vocab_size: int = 16_384,
    hard: int = 8,
    world_texts: int = 20_000,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Pack:
    """Tokenise what was read.

    Args:
        sources: What was read.
        vocab_size: Tokens of the tokenizer, learnt on the training part and on generated text.
        hard: Paragraphs that BM25 ranks high, for each question that brought none.
        world_texts: Generated texts for the tokenizer.
        tokenizer: The one to use, of the reader that a training is to begin from; None learns one.

    Raises:
        InvalidInputError: No question, or nothing to train on beside what is held out.
    """
    import numpy as np

    if not any(not one.held_out for one in sources.questions) or not any(one.held_out for one in sources.questions):
        raise InvalidInputError(
            f"{len(sources.questions)} questions were read; a pack needs some to train on and some on held-out "
            "articles (one article in ten)."
        )
    if tokenizer is not None:
        vocab_size = len(tokenizer)
    if not 300 <= vocab_size <= 65_536:
        raise InvalidInputError(f"vocab_size must be 300 to 65,536 (tokens are stored in two bytes); got {vocab_size}.")
    tokenizer = tokenizer or train_tokenizer(_tokenizer_texts(sources, world_texts), vocab_size)
    titles = {"": 0}
    for text in sources.texts:
        titles.setdefault(text.title, len(titles))
    token_lists, sentences, spans = [], [], []
    for text, encoding in zip(sources.texts, _encoded(tokenizer, [one.text for one in sources.texts]), strict=True):
        token_lists.append(encoding.ids)
        ranges = sentence_ranges(text.text)
        begins = [_tokens_at(encoding, start, end) for start, end in ranges]
        sentences.append([found[0] for found in begins if found])
        within = [(start + a, start + b) for start, end in ranges for a, b in fillings(text.text[start:end])]
        spans.append([i for a, b in within if (found := _tokens_at(encoding, a, b)) for i in found])
    asked = sources.questions

    def ids(texts: list[str]) -> Ragged:
        return Ragged.of((one.ids for one in _encoded(tokenizer, texts)), "uint16")

    kept = [not one.held_out for one in asked]
    about = {
        "sources": sources.names,
        "left_out": dict(sources.left_out),
        "paragraphs": len(sources.texts),
        "paragraphs_held_out": sum(one.held_out for one in sources.texts),
        "paragraph_tokens": sum(map(len, token_lists)),
        "questions": {
            name: sum(one.source == i and not one.held_out for one in asked) for i, name in enumerate(sources.names)
        },
        "questions_held_out": len(kept) - sum(kept),
        "vocab_size": len(tokenizer),
    }
    return Pack(
        texts=Ragged.of(token_lists, "uint16"),
        titles=ids([f"{title}:" if title else "" for title in titles]),
        title_of=np.array([titles[one.title] for one in sources.texts], dtype="int32"),
        held_texts=np.array([one.held_out for one in sources.texts]),
        sentences=Ragged.of(sentences, "uint16"),
        fillings=Ragged.of(spans, "uint16"),
        questions=ids([one.question for one in asked]),
        answers=ids([one.answer for one in asked]),
        gold=np.array([one.gold for one in asked], dtype="int32"),
        hard=Ragged.of(_hard(sources, hard), "int32"),
        source=np.array([one.source for one in asked], dtype="uint8"),
        held_questions=np.array([one.held_out for one in asked]),
        tokenizer=tokenizer,
        about=about,
    )


def _tokenizer_texts(sources: Sources, world_texts: int) -> Iterator[str]:
    """Training text alone: what is held out has no say in the vocabulary."""
    rng = random.Random(0)
    telling = world.Telling(sentences=(2, 4))
    for _ in range(world_texts):
        entity = world.new_entity(rng, "train")
        keys = world.some_keys(rng, entity, telling)
        yield world.passage(rng, "train", entity, keys, telling).content
        yield world.question(rng, "train", entity, keys[0], telling)
    # So often that every proper word of the generated world is merged into one token (see `names`).
    yield from [" ".join(names.PROPER_WORDS)] * 1500
    yield from (f"{one.title}: {one.text}" for one in sources.texts if not one.held_out)
    yield from (one.question for one in sources.questions if not one.held_out)


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Iterator[Encoding]:
    for first in range(0, len(texts), _CHUNK):
        yield from tokenizer.backend_tokenizer.encode_batch(texts[first : first + _CHUNK], add_special_tokens=False)


def _tokens_at(encoding: Encoding, start: int, end: int) -> tuple[int, int] | None:
    """The tokens `[first, last)` that cover exactly these characters, a space before them aside."""
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
    if first is None or last is None:
        return None
    exact = encoding.offsets[first][0] >= start - 1 and encoding.offsets[last][1] == end
    if first > 0 and encoding.tokens[first - 1] == _SPACE:  # a word whose first letters are not merged with their space
        first -= 1
    return (first, last + 1) if exact else None


def _hard(sources: Sources, count: int) -> Iterator[tuple[int, ...]]:
    """Distractors of each question: those that its file gave, or else what BM25 finds among all paragraphs."""
    import numpy as np

    retriever = BM25([one.text for one in sources.texts])
    barred = np.array([one.held_out for one in sources.texts])
    for asked in sources.questions:
        if asked.hard:
            yield asked.hard
            continue
        scores = retriever.scores(asked.question)
        if not asked.held_out:
            scores[barred] = -1.0
        yield tuple(islice(_without_answer(sources, asked, _best(scores, 3 * count)), count))


def _best(scores: Array, count: int) -> list[int]:
    """Indices of the highest scores above 0, the best first."""
    import numpy as np

    count = min(count, len(scores))
    top = np.argpartition(-scores, count - 1)[:count]
    return [int(i) for i in top[np.argsort(-scores[top], kind="stable")] if scores[i] > 0]


def _without_answer(sources: Sources, asked: Asked, found: list[int]) -> Iterator[int]:
    return (i for i in found if i != asked.gold and not holds(sources.texts[i].text, asked.answers))


def held_out_examples(sources: Sources, count: int, passages: int = 20, seed: int = 0) -> list[dict[str, Any]]:
    """Questions on held-out articles with BM25's best paragraphs of held-out articles, in retrieval order.

    They are what a profile of the finished reader is fitted on: the training has seen neither questions nor paragraphs.

    Args:
        sources: What was read.
        count: Questions at most.
        passages: Passages of each, the gold one among them.
        seed: Which questions are drawn.
    """
    held = [i for i, one in enumerate(sources.texts) if one.held_out]
    retriever = BM25([sources.texts[i].text for i in held])
    asked = [one for one in sources.questions if one.held_out and sources.texts[one.gold].held_out]
    random.Random(seed).shuffle(asked)
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(asked[:count]):
        by_text = dict(zip(held, retriever.scores(one.question).tolist(), strict=True))
        ranked = sorted(by_text, key=lambda i: -by_text[i])
        chosen = [one.gold, *islice(_without_answer(sources, one, ranked), passages - 1)]
        shown = [
            {
                "text": sources.texts[i].text,
                "title": sources.texts[i].title,
                "score": round(by_text[i], 4),
                "is_gold": i == one.gold,
            }
            for i in sorted(chosen, key=lambda i: -by_text[i])
        ]  # fmt: skip
        rows.append({"id": f"held-out-{number}", "question": one.question, "answers": [one.answer], "passages": shown})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Command line: read the training files and write the pack."""
    parser = argparse.ArgumentParser(
        prog="python -m focus_rag.embedded.real_reader.build_pack",
        description="Tokenise training files into one folder that the GPU run reads.",
        epilog="Example: ... --squad train-v1.1.json.gz --questions nq.train.jsonl.gz --leave-out "
        "nq.dev.jsonl.gz --out runs/pack",
    )
    parser.add_argument(
        "--squad", type=Path, nargs="+", default=[], help="training files in SQuAD format (.json, .json.gz)"
    )
    parser.add_argument(
        "--questions", type=Path, nargs="+", default=[], help="training questions with passages (.jsonl, .jsonl.gz)"
    )
    parser.add_argument(
        "--leave-out",
        type=Path,
        nargs="+",
        default=[],
        help="evaluation files; their questions and gold passages are left out",
    )
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument("--vocab-size", type=int, default=16_384, help="tokens of the tokenizer that is learnt")
    vocabulary.add_argument(
        "--tokenizer", type=Path, help="folder of the saved reader that the training is to begin from (--start)"
    )
    parser.add_argument(
        "--hard", type=whole_number(0), default=8, help="hard distractors found for each question that brings none"
    )
    parser.add_argument(
        "--fit-questions", type=whole_number(0), default=400, help="held-out questions written for `focus-rag fit`"
    )
    parser.add_argument("--out", type=folder, required=True, help="folder of the pack")
    given = parser.parse_args(arguments)
    sources = Sources()
    try:
        for file in given.leave_out:
            sources.leave_out(file)
        for file in given.squad:
            sources.read_articles(file)
        for file in given.questions:
            sources.read_questions(file)
        tokenizer = load_tokenizer(given.tokenizer) if given.tokenizer else None
        pack = build_pack(sources, vocab_size=given.vocab_size, hard=given.hard, tokenizer=tokenizer)
        begin_pack(given.out)
        with gzip.open(given.out / "held_out.jsonl.gz", "wt", encoding="utf-8") as lines:
            lines.writelines(
                json.dumps(row, ensure_ascii=False) + "\n" for row in held_out_examples(sources, given.fit_questions)
            )
        size = pack.save(given.out)
    except InvalidInputError as error:
        parser.error(str(error))
    json.dump({**pack.about, "bytes": size}, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
