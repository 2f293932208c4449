"""The generated world: splits that share nothing, passages that state what they say they state."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from focus_rag.embedded import names, world
from focus_rag.embedded.demo_documents import write_demo
from focus_rag.embedded.phrasings import phrasings
from focus_rag.embedded.retrieval import Embedding, evaluation_examples
from focus_rag.errors import InvalidInputError
from focus_rag.search.bm25 import BM25

SPLITS: tuple[names.Split, ...] = ("train", "dev", "test")


def test_no_sentence_form_belongs_to_two_splits() -> None:
    for kind in names.ENTITY_NAMES:
        keys = [row.key for row in phrasings("train").attributes[kind]]
        assert len(keys) >= 5
        for key in keys:
            rows = [next(row for row in phrasings(split).attributes[kind] if row.key == key) for split in SPLITS]
            for forms in ([row.forms for row in rows], [row.questions for row in rows]):
                assert all(forms)
                together = [form for part in forms for form in part]
                assert len(together) == len(set(together))


def _bare(form: str) -> set[str]:
    """All that a form can read as once its choices are made, without its slots, marks and capitals."""
    parts = [part.split("|") if i % 2 else [part] for i, part in enumerate(re.split(r"\[([^\[\]]*)\]", form))]
    readings = (re.sub(r"\{[^}]*\}", "_", "".join(chosen)) for chosen in itertools.product(*parts))
    return {" ".join(re.findall(r"\w+", reading.lower())) for reading in readings}


@pytest.mark.parametrize("kind", names.ENTITY_NAMES)
def test_no_training_form_can_read_like_a_held_out_one(kind: str) -> None:
    for trained, *held_out in zip(*(phrasings(split).attributes[kind] for split in SPLITS), strict=True):
        for part in ("forms", "questions", "past"):
            seen = {reading for form in getattr(trained, part) for reading in _bare(form)}
            for row in held_out:
                assert row.key == trained.key
                for form in getattr(row, part):
                    assert not seen & _bare(form)


def test_free_choices_are_all_compared() -> None:
    assert _bare("{S} [runs|is run] by {v!}.") == {"_ runs by _", "_ is run by _"}


@pytest.mark.parametrize("kind", names.ENTITY_NAMES)
def test_no_entity_belongs_to_two_splits(kind: str) -> None:
    rng = random.Random(1)
    for split in SPLITS:
        for _ in range(50):
            name = names.ENTITY_NAMES[kind](rng, split)
            assert names.split_of(name) == split
            assert names.split_of(names.sibling_name(rng, split, kind, name)) == split


@pytest.mark.parametrize("split", SPLITS)
def test_a_gold_passage_holds_the_answer_and_a_distractor_does_not_state_it(split: names.Split) -> None:
    rng = random.Random(2)
    telling = world.Telling()
    for _ in range(200):
        entity = world.new_entity(rng, split)
        key = rng.choice(list(entity.facts))
        gold = world.gold_passage(rng, split, entity, key, telling)
        assert entity.facts[key].lower() in gold.content.lower()
        assert key in gold.keys
        for kind in ("easy", "sibling", "same_entity", "outdated", "near_duplicate"):
            other = world.distractor(rng, split, entity, key, kind, telling)  # type: ignore[arg-type]
            assert (other.about.name, key) != (entity.name, key) or key not in other.keys


def test_text_has_no_slot_left_open() -> None:
    rng = random.Random(3)
    for split in SPLITS:
        for _ in range(300):
            entity = world.new_entity(rng, split)
            key = rng.choice(list(entity.facts))
            told = world.distractor(rng, split, entity, key, "outdated", world.Telling()).content
            asked = world.question(rng, split, entity, key, world.Telling(rich=0.5))
            assert not re.search(r"[{}\[\]|]", told + asked)
            assert entity.name in asked


def test_bm25_ranks_rare_shared_words_first() -> None:
    retriever = BM25(["the red mill by the river", "the red barn", "a green barn by the mill"])
    scores = retriever.scores("Where is the green mill?")
    assert scores.argmax() == 2
    assert scores[1] == 0.0


def test_an_embedding_finds_what_shares_no_word() -> None:
    texts = [
        "the red mill by the river",
        "the river runs past the mill",
        "a river with a mill",
        "the barn burnt in the fire",
        "fire took the barn",
    ]
    scores = Embedding(texts, dimensions=2).scores("Where is the mill?")
    assert set(scores.argsort()[-3:]) == {0, 1, 2}
    assert Embedding(texts, dimensions=2).scores("red")[1] > 0.5 > BM25(texts).scores("red")[1]


def test_another_retriever_finds_other_passages_for_the_same_questions() -> None:
    by_words, by_embedding = (
        evaluation_examples("dev", 3, 8, seed=4, rich=0, retriever=name) for name in ("bm25", "embedding")
    )
    assert [example["question"] for example in by_words] == [example["question"] for example in by_embedding]
    for one, other in zip(by_words, by_embedding, strict=True):
        scores = [passage["score"] for passage in other["passages"]]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] <= 1
        assert {passage["text"] for passage in one["passages"]} != {passage["text"] for passage in other["passages"]}


def test_examples_hold_one_gold_passage_and_repeat_with_their_seed() -> None:
    examples = evaluation_examples("dev", 20, 8, 0.5, seed=4)
    assert examples == evaluation_examples("dev", 20, 8, 0.5, seed=4)
    assert examples != evaluation_examples("dev", 20, 8, 0.5, seed=5)
    for example in examples:
        gold = [passage for passage in example["passages"] if passage["is_gold"]]
        assert len(example["passages"]) == 8
        assert len(gold) == 1
        statement, value = example["answers"]
        assert value.lower() in gold[0]["text"].lower()
        assert statement.endswith(f" is {value}.")


def test_less_noise_leaves_a_wider_gap_between_gold_and_the_rest() -> None:
    def mean_gap(noise: float) -> float:
        gaps = []
        for example in evaluation_examples("dev", 40, 10, noise):
            gold = next(passage["score"] for passage in example["passages"] if passage["is_gold"])
            others = [passage["score"] for passage in example["passages"] if not passage["is_gold"]]
            gaps.append(gold - sum(others) / len(others))
        return sum(gaps) / len(gaps)

    assert mean_gap(0.0) > mean_gap(0.5) > mean_gap(1.0)


def test_plain_examples_state_what_they_ask_in_the_words_of_the_answer() -> None:
    for example in evaluation_examples("dev", 20, 5, rich=0.0):
        gold = next(passage for passage in example["passages"] if passage["is_gold"])
        assert example["answers"][0] in gold["text"]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("The birthplace of {s} is {v}.", "The birthplace of him is {v}."),
        ("The company that employs {s} is {v}.", "The company that employs him is {v}."),
        ("In {v}, {s} was born.", "In {v}, {s} was born."),
        ("Work led {s} to {v}.", "Work led him to {v}."),
    ],
)
def test_pronouns_take_the_case_of_their_place(form: str, expected: str) -> None:
    assert world._objective(form, "he") == expected


def test_without_gold_the_answer_is_not_stated() -> None:
    for example in evaluation_examples("dev", 10, 5, with_gold=False):
        assert example["answers"][1:] == ["not stated"]
        assert example["answers"][0].endswith(" is not stated.")
        assert len(example["passages"]) == 5
        assert not any(passage["is_gold"] for passage in example["passages"])


@pytest.mark.parametrize(("split", "n_passages", "noise"), [("exam", 5, 1.0), ("dev", 0, 1.0), ("dev", 5, 1.5)])
def test_bad_requests_are_refused(split: str, n_passages: int, noise: float) -> None:
    with pytest.raises(InvalidInputError):
        evaluation_examples(split, 1, n_passages, noise)  # type: ignore[arg-type]


def test_demo_documents_hold_the_answers_to_their_questions(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import json

    assert write_demo(tmp_path) == len(list(tmp_path.glob("*.md")))
    for line in (tmp_path / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row["answers"][-1].lower() in (tmp_path / row["document"]).read_text(encoding="utf-8").lower()
