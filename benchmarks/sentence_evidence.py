"""Whether the sentence that an answer is said to stand on does hold the answer.

Of questions that are answered right and where some but not all sentences in the prompt hold the accepted answer: how
often the first one of an answer's evidence does, and how often the first one by attention alone, by words shared with
the answer or with the question alone, and any one. The same where a sentence counts only in a gold passage, though
others may say the same. Without `--data`, test questions of the generated world for the embedded reader.

    python -m benchmarks.sentence_evidence --rich 0 --output benchmarks/results/sentence_evidence_plain.json
    python -m benchmarks.sentence_evidence --rich 1 --keep-best 8 --output benchmarks/results/sentence_evidence_new_forms.json
    python -m benchmarks.sentence_evidence --model READER --profile models/real-reader/profile --data FILE... --keep-best 8
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.intervention import written
from focus_rag.answers import GenerationSettings
from focus_rag.attention.measuring import SpanMeter
from focus_rag.attention.shares import attention_shares
from focus_rag.embedded.retrieval import evaluation_examples
from focus_rag.evaluation.metrics import normalised_answer, substring_match
from focus_rag.evaluation.statistics import bootstrap_mean
from focus_rag.evidence import best_supported
from focus_rag.examples import Example, examples_from_rows, load_examples
from focus_rag.generator import FocusGenerator
from focus_rag.passages import Passage
from focus_rag.shared_words import shared_word_scores

PASSAGES, NEW_TOKENS = 20, 48


def main() -> None:
    """Answer the questions and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--profile")
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--rich", type=float, default=0.0)
    parser.add_argument("--keep-best", type=int)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    generator = FocusGenerator.from_pretrained(
        options.model, options.profile, settings=GenerationSettings(max_new_tokens=NEW_TOKENS)
    )
    results = []
    for name, examples in _asked(options):
        found = [one for example in examples if (one := _holding(generator, example, options.keep_best)) is not None]
        results.append(
            {
                "data": name,
                "asked": len(examples),
                "passages kept": options.keep_best,
                "holds the answer": _shares(found, 0),
                "and is in a gold passage": _shares(found, 1),
            }
        )
    print(written({"results": results}, options.output), end="")


def _asked(options: argparse.Namespace) -> list[tuple[str, Sequence[Example]]]:
    if options.data:
        return [
            (file.name, load_examples(file, score_kind="bm25").examples[: options.questions]) for file in options.data
        ]
    rows = evaluation_examples("test", options.questions, PASSAGES, 1.0, 0, rich=options.rich)
    return [(f"generated world, {options.rich:.0%} in new forms", examples_from_rows(rows).examples)]


def _shares(found: Sequence[dict[str, tuple[float, float]]], which: int) -> dict[str, Any]:
    return {
        ranking: bootstrap_mean([one[ranking][which] for one in found]).to_dict()
        for ranking in (found[0] if found else {})
    }


def _holding(generator: FocusGenerator, example: Example, keep: int | None) -> dict[str, tuple[float, float]] | None:
    """By each ranking, whether the first sentence holds the answer, and whether in a gold passage; None where the
    question does not tell.
    """
    shown = example if keep is None else example.keep_best(keep)
    known: dict[str, Any] = {"score_kind": shown.score_kind}
    prompt = generator.prompts.from_question(
        shown.question,
        shown.passages,
        max_tokens=generator.context_window - NEW_TOKENS,
        drop_order=shown.by_relevance()[::-1],
    )
    texts = [Passage(one.text, title=shown.passages[one.passage].title) for one in prompt.sentences]
    of_passage = [prompt.placed.index(one.passage) for one in prompt.sentences]
    spans = [prompt.spans[index] for index in prompt.placed] + [one.tokens for one in prompt.sentences]
    assert generator.profile is not None
    with SpanMeter(generator.model, generator.profile.head_pairs, [spans], len(prompt.input_ids)) as meter:  # type: ignore[list-item]
        answer = generator.answer(shown.question, shown.passages, **known)
    said = [accepted for accepted in example.answers if substring_match(answer.text, [accepted])]
    if not said:
        return None
    value = normalised_answer(min(said, key=len))  # of a statement and the value in it, the value
    holds = [float(value in normalised_answer(one.text)) for one in prompt.sentences]
    in_gold = [held * (one.passage in shown.gold) for held, one in zip(holds, prompt.sentences, strict=True)]
    if not sum(in_gold) or sum(holds) == len(holds):
        return None
    steps = [step[0] for step in meter.steps[: answer.usage.completion_tokens]]
    _, attention = attention_shares(
        steps, of_passage, [answer.passages[index].favoured for index in prompt.placed], answer.tau
    )
    first = {
        "evidence": best_supported(answer.text, texts, of_passage, attention)[0],
        "attention alone": _highest(attention),
        "words of the answer alone": _highest(shared_word_scores(answer.text, texts)),
        "words of the question alone": _highest(shared_word_scores(shown.question, texts)),
    }
    if (answer.evidence[0].passage, answer.evidence[0].text) != (
        prompt.sentences[first["evidence"]].passage,
        texts[first["evidence"]].text,
    ):
        raise SystemExit(f"The generator's own evidence differs for {shown.question!r}.")
    chance = sum(holds) / len(holds), sum(in_gold) / len(in_gold)
    return {**{ranking: (holds[index], in_gold[index]) for ranking, index in first.items()}, "any sentence": chance}


def _highest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])


if __name__ == "__main__":
    main()
