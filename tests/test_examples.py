"""Examples are checked, what is left out is counted, and splits depend on questions alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from focus_rag.errors import InvalidInputError
from focus_rag.examples import Example, exact_answer, examples_from_rows, holds_answer, load_examples, split_examples
from focus_rag.fitting.cloze_examples import examples_from_documents
from focus_rag.json_files import json_rows
from focus_rag.passages import Passage
from focus_rag.score_order import orientation


def row(question: str = "Who built the mill?", **changes: Any) -> dict[str, Any]:
    passages = [
        {"text": "Ann Reed built the mill.", "is_gold": True, "title": "Mill", "score": "3.5"},
        {"text": "A bridge.", "is_gold": False},
    ]
    return {"question": question, "answers": ["Ann Reed"], "passages": passages, **changes}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("text", "not a JSON object"),
        (row(question=" "), "no question"),
        (row(question=3), "no question"),
        (row(answers=[]), "no answers"),
        (row(answers=["?!"]), "no answers"),
        (row(passages=[]), "no passages"),
        (row(passages=[{"text": "x", "is_gold": False}]), "no gold passage"),
        (row(passages=[{"text": "Ann Reed", "is_gold": "true"}, {"text": "y"}]), "is_gold is neither true nor false"),
        (row(passages=[{"text": "Ann Reed", "is_gold": 2}, {"text": "y"}]), "is_gold is neither true nor false"),
        (row(passages=[{"text": "Ann Reed", "is_gold": True}]), "only gold passages"),
        (row(passages=[{"text": "", "is_gold": True}, {"text": "y"}]), "a passage without text"),
        (row(answers=["Bob"]), "answer in no gold passage"),
        (row(answers=["Ann Ree"]), "answer in no gold passage"),
        (row(score_kind="stars"), "unknown score_kind"),
    ],
)
def test_unusable_rows_are_counted_by_reason(bad: object, reason: str) -> None:
    found = examples_from_rows([row(), bad])
    assert len(found.examples) == 1 and found.skipped == {reason: 1}
    with pytest.raises(InvalidInputError, match=f"1 usable examples and at least 2 .*{reason}: 1"):
        found.require(2)


def test_a_good_row_keeps_everything() -> None:
    example = examples_from_rows([row(answers=["Miss Reed", "Ann Reed"])]).examples[0]
    assert example.passages[0] == Passage("Ann Reed built the mill.", score=3.5, title="Mill")
    assert example.answers == ("Ann Reed", "Miss Reed"), "an answer that stands in the gold passage comes first"
    assert example.gold == {0}


def scores(example: Example) -> list[float | None]:
    return [passage.score for passage in example.passages]


def test_what_scores_are_is_said_by_the_row_or_for_the_file(tmp_path: Path) -> None:
    passages = [
        {"text": "Ann Reed built it.", "is_gold": True, "score": 0.4},
        {"text": "x", "score": 0.1},
        {"text": "y", "score": 0.3},
    ]
    rows = [row(question="One?", passages=passages), row(question="Two?", passages=passages, score_kind="cosine")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [one.score_kind for one in load_examples(tmp_path / "rows.jsonl").examples] == [None, "cosine"]
    distances, similarities = load_examples(tmp_path / "rows.jsonl", score_kind="l2").examples
    assert (distances.score_kind, similarities.score_kind) == ("l2", "cosine")
    assert (distances.best_first(), similarities.best_first()) == ([1, 2, 0], [0, 2, 1])
    assert scores(distances.at_count(2)) == [0.4, 0.1] and scores(similarities.at_count(2)) == [0.4, 0.3]


@pytest.mark.parametrize(
    ("given", "kind", "best"),
    [((3.0, 2.0, 1.0), None, 3.0), ((1.0, 2.0, 3.0), None, 1.0), ((1.0, 3.0, 2.0), "bm25", 3.0)],
)
def test_shuffled_scores_are_the_same_ones_the_same_way_up(given: tuple[float, ...], kind: Any, best: float) -> None:
    passages = tuple(Passage(f"text {place}", score=score) for place, score in enumerate(given))
    example = Example("Why?", ("text 0",), passages, frozenset({0}), kind)
    dealt = [example.with_shuffled_scores(seed) for seed in range(8)]
    assert dealt[0] == example.with_shuffled_scores(0) and len({tuple(scores(one)) for one in dealt}) > 2
    for one in dealt:
        assert sorted(scores(one)) == sorted(given) and [each.text for each in one.passages] == [
            each.text for each in passages
        ]
        assert one.passages[one.best_first()[0]].score == best


def test_repeated_questions_count_once() -> None:
    found = examples_from_rows([row(), row(question="Who  built the mill?")])
    assert len(found.examples) == 1 and found.skipped == {"question repeated": 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_files_are_read_and_broken_lines_counted(name: str, tmp_path: Path) -> None:
    text = "\n".join([json.dumps(row()), "", "{broken", json.dumps(row("When?"))])
    file = tmp_path / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    found = load_examples(file)
    assert len(found.examples) == 2 and found.skipped == {"not a JSON object": 1} and found.source == name


def test_a_byte_order_mark_and_lines_that_no_parser_takes_stop_nothing(tmp_path: Path) -> None:
    lines = [json.dumps(row()), "1" * 5000, "[" * 100_000, json.dumps(row("When?"))]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8-sig")
    found = load_examples(file)
    assert len(found.examples) == 2 and found.skipped == {"not a JSON object": 2}
    assert len(list(json_rows(file))) == 4


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="No examples at"):
        load_examples(tmp_path / "missing.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_examples(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 50)[:14] + b"\xff" * 20)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_examples(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_examples(tmp_path / "b.jsonl")


def test_splits_do_not_depend_on_order_or_neighbours() -> None:
    examples = list(examples_from_rows([row(f"Who built mill {i}?") for i in range(50)]).examples)
    train, dev = split_examples(examples, dev_share=0.4)
    assert len(dev) == 20 and len(train) == 30 and not {one.key for one in train} & {one.key for one in dev}
    assert split_examples(examples[::-1], dev_share=0.4) == (train, dev)
    assert [len(part) for part in split_examples(examples[:2], dev_share=0.9)] == [1, 1]


def test_fewer_passages_keep_gold_and_the_best_scored() -> None:
    passages = tuple(Passage(str(i), score=score) for i, score in enumerate([1.0, 9.0, 5.0, 7.0, 3.0]))
    example = Example("q", ("0",), passages, frozenset({0}))
    assert [one.text for one in example.at_count(3).passages] == ["0", "1", "3"]
    assert example.at_count(3).gold == {0} and example.at_count(1).passages == passages[:1]
    assert example.at_count(5) == example and example.gold_only().passages == passages[:1]


def test_answers_are_compared_in_their_normal_form() -> None:
    assert holds_answer("In 1897, the Mill burned.", ["mill"]) and not holds_answer("millions", ["million"])
    assert exact_answer("The mill!", ["mill"]) and not exact_answer("a mill house", ["mill"])
    assert not holds_answer("anything", ["?"]) and not holds_answer("anything", ["", "the"])
    assert holds_answer("“1882” — the Old Mill…", ["1882 old mill"]) and not holds_answer("in 18820", ["1882"])


def test_documents_become_cloze_questions(tmp_path: Path) -> None:
    towns = ["Arden", "Belfry", "Corwen", "Dunmore", "Eastleigh", "Farley"]
    for i, town in enumerate(towns):
        lines = [f"The old harbour of {town} was built in the year {1800 + 7 * i} by local masons." for _ in range(1)]
        (tmp_path / f"{town}.txt").write_text(
            f"{town}\n\n" + " ".join(lines) + " It was widened later, when trade with the north grew."
        )
    found = examples_from_documents(tmp_path, passages=4)
    assert len(found.examples) == 6
    for example in found.examples:
        gold = [example.passages[i] for i in example.gold]
        assert len(gold) == 1 and holds_answer(gold[0].content, example.answers)
        assert "___" in example.question and example.answers[0] not in example.question
        others = [one for i, one in enumerate(example.passages) if i not in example.gold]
        assert len(others) == 3 and not any(holds_answer(one.content, example.answers) for one in others)
        assert all(one.score is not None for one in example.passages)
    again = examples_from_documents(tmp_path, passages=4)
    assert again.examples == found.examples


def test_numbers_and_initials_end_no_sentence_and_a_question_comes_once(tmp_path: Path) -> None:
    twice = "The tower of the old mill there is 3.5 metres tall and white."
    once = "The tower of the new hall was drawn for the town by J. Smith in the spring of 1902."
    for number, text in enumerate([twice, twice, once]):
        (tmp_path / f"{number}.txt").write_text(text)
    found = examples_from_documents(tmp_path, passages=3)
    assert len({one.key for one in found.examples}) == len(found.examples)
    assert found.skipped["question repeated"] == 1
    assert {one.answers[0] for one in found.examples} <= {"3.5", "1902", "J"}
    assert all(one.question.startswith("Fill the gap: The tower") for one in found.examples)


def test_every_sentence_can_be_asked_about_and_figures_are_asked_for_alone(tmp_path: Path) -> None:
    for i, (town, colour) in enumerate([("Arden", "red"), ("Belfry", "green"), ("Corwen", "grey")]):
        text = (
            f"The {colour} mill of the town was built in {1801 + i} by local masons. The old school of "
            f"{colour} brick was opened in {1900 + i} for boys."
        )
        (tmp_path / f"{town}.txt").write_text(f"{text} The well that nobody remembers lies behind both of them.")
    found = examples_from_documents(tmp_path, passages=3)
    assert len(found.examples) == 6 and {len(one.answers[0]) for one in found.examples} == {4}
    assert {"___ by local" in one.question or "___ for boys" in one.question for one in found.examples} == {True}
    assert len({one.passages[next(iter(one.gold))].text for one in found.examples[:3]}) == 3
    assert len(examples_from_documents(tmp_path, passages=3, most=4).examples) == 4


def test_shuffled_passages_are_the_same_ones_and_gold_goes_along() -> None:
    passages = tuple(Passage(str(number)) for number in range(12))
    example = Example("q", ("3",), passages, frozenset({3, 4}))
    shuffled = example.shuffled(0)
    assert shuffled.passages != passages and set(shuffled.passages) == set(passages)
    assert {shuffled.passages[index].text for index in shuffled.gold} == {"3", "4"}
    assert shuffled == example.shuffled(0) != example.shuffled(1)
    assert Example("r", ("3",), passages, frozenset({3})).shuffled(0).passages != shuffled.passages


def test_gold_may_be_marked_by_numbers():
    found = examples_from_rows(
        [
            row(
                passages=[
                    {"text": "Ann Reed", "is_gold": 1},
                    {"text": "y", "is_gold": 0},
                    {"text": "z", "is_gold": None},
                ]
            )
        ]
    )
    assert found.examples[0].gold == {0}


def test_a_question_in_other_case_and_punctuation_is_repeated():
    asked = ["Who built the mill?", "who built the mill", "Who built the  mill ?", "Who built the mills?", "???", "??"]
    others = [
        "What is C?",
        "What is C++?",
        "What is C#?",
        "What is vitamin A?",
        "What is vitamin?",
        "Who built a mill?",
    ]
    found = examples_from_rows([{**row(), "question": one} for one in [*asked, *others]])
    assert [one.question for one in found.examples] == [
        "Who built the mill?",
        "Who built the mills?",
        "???",
        "??",
        *others,
    ]
    assert found.skipped == {"question repeated": 2}


def test_fewer_passages_keep_the_orientation_that_all_have_or_none():
    scores = [0.6, 0.2, 0.84, 0.5, 1.0, 0.1]
    shuffled = Example("q", ("a",), tuple(Passage(f"a {i}", score) for i, score in enumerate(scores)), frozenset({0}))
    assert orientation(scores) is None and orientation([0.6, 0.84, 1.0]) is False
    assert [one.score for one in shuffled.of_these([0, 2, 4]).passages] == [None] * 3
    assert shuffled.of_these(range(6)) == shuffled
    falling = Example("q", ("a",), tuple(Passage(f"a {i}", -i) for i in range(6)), frozenset({0}))
    assert falling.of_these([1, 4]).score_kind == "inner_product"


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("日本の首都は東京です。", "東京", True), ("日本の首都は東京です。", "京都", False), ("ราคา 405 บาทต่อคืน", "405 บาท", True),
        ("全長は405メートル", "405", True), ("全長は 405 メートル", "405", True), ("The mill has 1423 stones.", "42", False),
        ("ソニーのWalkman発売", "Walkman", True), ("milling", "mill", False), ("อายุ ๑๕ ปี", "๕", False), ("อายุ ๑๕ ปี", "๑๕", True), ("The mill.", "mill", True),
    ],
)  # fmt: skip
def test_words_of_languages_without_spaces_end_anywhere(text, answer, held):
    assert holds_answer(text, [answer]) is held


def test_a_file_whose_name_is_no_text_has_one_all_the_same(tmp_path):
    file = tmp_path / "caf\udce9.jsonl"
    try:
        file.write_text(json.dumps(row()))
    except OSError:
        pytest.skip("this file system takes no such names")
    assert load_examples(file).source == "caf?.jsonl"


def test_lines_of_json_are_read_under_any_name(tmp_path):
    for name in ("a.json", "A.JSON", "b.jsonl"):
        (tmp_path / name).write_text("\n".join(json.dumps({**row(), "question": f"Who {i}?"}) for i in range(3)))
        assert len(load_examples(tmp_path / name).examples) == 3
    (tmp_path / "C.JSONL.GZ").write_bytes(gzip.compress(json.dumps(row()).encode()))
    assert len(load_examples(tmp_path / "C.JSONL.GZ").examples) == 1
