import json

import pytest

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.cases import UNMARKED_GOLD, Case, Cell, FileCases, arrange, case_of, cells_of
from focus_rag.evaluation.datasets import load_cases
from focus_rag.examples import Example
from focus_rag.passages import Passage


def row(number=0, n=6, gold=(2,), **more):
    return {
        "id": f"q{number}",
        "question": f"Who built mill {number}?",
        "answers": [f"Builder {number}"],
        "passages": [
            {
                "text": f"Builder {number} built it, part {place}."
                if place in gold
                else f"Nothing on {number} {place}.",
                "score": 10.0 - place,
                "is_gold": place in gold,
            }
            for place in range(n)
        ],
        **more,
    }


def source(n=8):
    return FileCases("made", tuple(case_of(row(number)) for number in range(n)), {})


def test_rows_without_gold_are_for_abstaining_and_rows_of_gold_alone_count_too():
    missing = case_of(row(gold=()))
    assert isinstance(missing, Case)
    assert missing.abstain
    assert len(missing.example.passages) == 6
    only = case_of(row(n=1, gold=(0,)))
    assert isinstance(only, Case)
    assert not only.abstain
    assert len(only.example.passages) == 1


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"answers": []}, "no answers"),
        ({"answers": ["The", "?"]}, "no answers"),
        ({"question": " "}, "no question"),
        ({"passages": []}, "no passages"),
        ({"answers": ["Somebody else"]}, "answer in no gold passage"),
    ],
)
def test_a_row_left_out_says_why(broken, reason):
    assert case_of({**row(), **broken}) == reason


def test_abstaining_is_never_right_where_a_passage_holds_the_answer():
    unmarked = row()
    for one in unmarked["passages"]:
        del one["is_gold"]
    assert case_of(unmarked) == UNMARKED_GOLD
    told_twice = row()
    told_twice["passages"][4]["text"] = "As is known, builder 0 did."
    case = case_of(told_twice)
    assert not case.abstain
    assert arrange(case, Cell(gold_missing=True), (), 0) is None
    assert arrange(case_of(row()), Cell(gold_missing=True), (), 0).abstain


def test_count_keeps_the_gold_and_the_best_scored_others():
    (case, *_) = source().cases(Cell(count=3), None, seed=0)
    assert len(case.example.passages) == 3
    assert len(case.example.gold) == 1
    assert [passage.score for passage in case.example.passages] == [10.0, 9.0, 8.0]


def test_noise_replaces_hard_distractors_by_passages_of_other_questions():
    cases = source(30).cases(Cell(count=5, noise=0.5), None, seed=0)
    assert len(cases) == 30
    for case in cases:
        own = case.id[1:]
        foreign = [
            one for one in case.example.passages if f"on {own} " not in one.text and f"Builder {own} " not in one.text
        ]
        assert len(case.example.passages) == 5
        assert len(foreign) == 2
        assert not any(f"Builder {own} " in one.text for one in foreign)


@pytest.mark.parametrize(("position", "place"), [("first", 0), ("middle", 2), ("last", 5)])
def test_gold_position(position, place):
    for case in source().cases(Cell(position=position), None, seed=0):
        assert case.example.gold == {place}
        assert "Builder" in case.example.passages[place].text


def test_gold_missing_turns_the_right_answer_into_none():
    for case in source().cases(Cell(count=4, gold_missing=True), None, seed=0):
        assert case.abstain
        assert len(case.example.passages) == 4
        assert not any("Builder" in one.text for one in case.example.passages)


def test_without_gold_only_rows_that_had_the_count_are_asked_with_what_is_left_of_it():
    mixed = FileCases("mixed", tuple(case_of(row(number, n)) for number, n in enumerate((3, 6, 6, 4, 8))), {})
    found = mixed.cases(Cell(count=6, gold_missing=True), None, seed=0)
    assert {case.id: len(case.example.passages) for case in found} == {"q1": 5, "q2": 5, "q4": 6}
    # Of six only three are hard: those the short rows have, the rest come from other questions.
    noisy = mixed.cases(Cell(count=6, noise=0.5, gold_missing=True), None, seed=0)
    assert {case.id: len(case.example.passages) for case in noisy} == {"q0": 5, "q1": 6, "q2": 6, "q3": 6, "q4": 6}


@pytest.mark.parametrize("cell", [Cell(gold_missing=True), Cell(count=1, gold_missing=True)])
def test_without_gold_a_row_of_nothing_else_is_left_out(cell):
    assert arrange(case_of(row(n=1, gold=(0,))), cell, (), 0) is None


def test_shuffled_scores_are_the_same_scores_on_other_passages():
    plain = source().cases(Cell(), None, seed=0)
    shuffled = source().cases(Cell(shuffled_scores=True), None, seed=0)
    assert plain != shuffled
    for before, after in zip(plain, shuffled, strict=True):
        assert [one.text for one in before.example.passages] == [one.text for one in after.example.passages]
        assert sorted(one.score for one in before.example.passages) == sorted(
            one.score for one in after.example.passages
        )


def test_scores_can_be_taken_away():
    plain, without = (source().cases(Cell(without_scores=taken), None, seed=0) for taken in (False, True))
    assert Cell(without_scores=True).key == "as given, without scores"
    for before, after in zip(plain, without, strict=True):
        assert [one.text for one in before.example.passages] == [one.text for one in after.example.passages]
        assert {one.score for one in after.example.passages} == {None} != {one.score for one in before.example.passages}


def test_the_same_seed_gives_the_same_cases_and_another_seed_others():
    cell = Cell(count=5, noise=0.5)
    assert source().cases(cell, 5, seed=3) == source().cases(cell, 5, seed=3)
    assert source().cases(cell, 5, seed=3) != source().cases(cell, 5, seed=4)


@pytest.mark.parametrize("given", [5, "Paris", {"Paris": 1}, None])
def test_wrong_answers_that_are_no_list_are_none(given):
    assert case_of(row(wrong_answers=given)).wrong_answers == ()


def test_a_case_that_cannot_fill_the_count_is_left_out():
    case = case_of(row())
    assert arrange(case, Cell(count=7), (), seed=0) is None
    assert arrange(case, Cell(count=6), (), seed=0) is not None


def test_cells_are_counts_by_noises_and_the_rest_around_the_noisiest_of_most_passages():
    cells = cells_of([1, 20], [0.5, 1.0], ["first"], gold_missing=True)
    assert [cell.key for cell in cells] == [
        "n=1, noise=0.5", "n=1, noise=1", "n=20, noise=0.5", "n=20, noise=1", "n=20, noise=1, gold first",
        "n=20, noise=1, gold missing",
    ]  # fmt: skip


def write(folder, name, rows):
    file = folder / name
    file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return file


CTX = {"title": "Mill", "text": "Builder 0 built it."}
OTHER = {"title": "Oven", "text": "Nothing here."}


@pytest.mark.parametrize(
    "given",
    [
        {
            "question": "Who built it?", "answers": ["Builder 0"], "nq_annotated_gold": {},
            "ctxs": [{**CTX, "isgold": True, "hasanswer": True}, {**OTHER, "isgold": False, "hasanswer": True}],
        },
        {
            "question": "Who built it?", "answers": ["Builder 0"], "nq_annotated_gold": {},
            "ctxs": [{**CTX, "hasanswer": True}, {**OTHER, "hasanswer": False}],
        },
        {"id": "h", "question": "Who built it?", "answers": ["Builder 0"], "ctxs": [{**CTX, "has_answer": True}, OTHER]},
        {"question": "Who built it?", "answers": ["Builder 0"], "ctxs": [CTX, OTHER]},
        {"question": "Who built it?", "qa_pairs": [{"short_answers": ["Builder 0"]}], "docs": [CTX, OTHER]},
        {"question": "Who built it?", "answers": [["Builder 0", "B0"]], "docs": [CTX, OTHER]},
        {"qid": 7, "query": "who built it", "ctxs": [{"id": "a1", "label": 3, **CTX}, {"id": "b2", "label": 0, **OTHER}]},
        {"ordered_kv_records": [["9f4a-1", "703a-7"], ["a54e-2", "d1ff-8"]], "key": "9f4a-1", "value": "703a-7"},
    ],
)  # fmt: skip
def test_every_format_ends_in_the_same_case(tmp_path, given):
    loaded = load_cases(write(tmp_path, "data.jsonl", [given]))
    (case,) = loaded.all
    assert case.example.gold == {0}
    assert len(case.example.passages) == 2
    assert any(answer in case.example.passages[0].text for answer in case.example.answers)


def test_skipped_rows_are_counted_and_nothing_usable_is_an_error(tmp_path):
    file = write(tmp_path, "data.jsonl", [row(), row(), row(1, gold=()), {"question": "x"}, 7, row(2, answers=[])])
    loaded = load_cases(file)
    assert [case.id for case in loaded.all] == ["q0", "q0#2", "q1"]
    assert loaded.skipped == {
        "no known format": ("row 4",), "not a JSON object": ("row 5",), "no answers": ("row 6",)
    }  # fmt: skip
    with pytest.raises(InvalidInputError, match="no usable question"):
        load_cases(write(tmp_path, "empty.jsonl", [{"question": "x"}]))
    with pytest.raises(InvalidInputError, match="No questions at"):
        load_cases(tmp_path / "absent")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"question": "Why?", "answer": "Because of this and that.", "docs": [CTX]}, "no short answer"),
        (
            {"question": "Who?", "qa_pairs": [{"short_answers": ["Nobody"]}], "docs": [CTX]},
            "no passage holds an accepted",
        ),
        ({"question": "Who?", "answers": ["Nobody"], "ctxs": [CTX, OTHER]}, "no passage holds an accepted"),
        ({"query": "who", "ctxs": [{"id": "a", "label": 0, **CTX}]}, "no passage is labelled relevant"),
        ({"question": "Who?", "answers": ["x"], "ctxs": ["text"]}, "does not follow its format"),
    ],
)
def test_a_row_of_another_format_that_is_left_out_says_why(tmp_path, given, reason):
    with pytest.raises(InvalidInputError, match=reason):
        load_cases(write(tmp_path, "data.jsonl", [given]))


def test_json_that_is_one_list_or_object_or_neither(tmp_path):
    for name, text in (("list.json", [row()]), ("object.json", {"data": [row()]}), ("one.json", row())):
        (tmp_path / name).write_text(json.dumps(text))
        assert [case.id for case in load_cases(tmp_path / name).all] == ["q0"]
    (tmp_path / "text.json").write_text('"text"')
    with pytest.raises(InvalidInputError, match="not a JSON object"):
        load_cases(tmp_path / "text.json")
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_cases(tmp_path / "torn.json")


def test_a_folder_of_files_says_in_which_a_row_was_left_out(tmp_path):
    write(tmp_path, "a.jsonl", [row(0)])
    write(tmp_path, "b.jsonl", [row(1), row(2, answers=[]), row(0)])
    loaded = load_cases(tmp_path)
    assert [case.id for case in loaded.all] == ["q0", "q1"]
    assert loaded.skipped == {"no answers": ("b.jsonl row 2",), "question repeated": ("b.jsonl row 3",)}


def test_files_of_a_folder_may_number_their_rows_alike(tmp_path):
    write(tmp_path, "a.jsonl", [{**row(0), "id": 1}, {**row(1), "id": 2}])
    write(tmp_path, "b.jsonl", [{**row(2), "id": 1}, {**row(1), "id": 2}])
    loaded = load_cases(tmp_path)
    assert [case.id for case in loaded.all] == ["1", "2", "b.jsonl row 1: 1"]
    assert loaded.skipped == {"question repeated": ("b.jsonl row 2",)}


def test_beir_folder(tmp_path):
    write(tmp_path, "corpus.jsonl", [
        {"_id": "d1", "title": "Mill", "text": "The mill was built by Anna."},
        {"_id": "d2", "title": "Oven", "text": "The oven was built by Bert."},
        {"_id": "d3", "title": "", "text": "Nothing is said here."},
        {"_id": "d4", "title": "No text"},
    ])  # fmt: skip
    write(tmp_path, "queries.jsonl", [
        {"_id": "q1", "text": "Who built the mill?", "metadata": {"answers": ["Anna"]}},
        {"_id": "q2", "text": "unjudged"},
        {"_id": "q3", "text": "What is not said?"},
        {"_id": "q4", "text": "judged, and its document is gone"},
        {"text": "nameless"},
    ])  # fmt: skip
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq3\td3\t1\nq4\td9\t1\n"
    )
    loaded = load_cases(tmp_path, retrieve=2)
    (case,) = loaded.all
    assert [one.id for one in case.example.passages] == ["d1", "d2"]
    assert case.example.gold == {0}
    assert loaded.skipped == {
        "a document without _id or text": ("corpus row 4",),
        "no document is judged relevant": ("query q2",),
        "neither answers nor a relevant document with a title": ("query q3",),
        "no judged document is in the corpus": ("query q4",),
        "a query without _id or text": ("query row 5",),
    }
    (tmp_path / "qrels" / "test.tsv").write_text("q1 d1 1\n")
    with pytest.raises(InvalidInputError, match="query-id"):
        load_cases(tmp_path)


def test_csv_over_documents(tmp_path):
    documents = tmp_path / "docs"
    documents.mkdir()
    (documents / "mill.txt").write_text("The mill was built by Anna in 1841.")
    (documents / "oven.txt").write_text("The oven was bought by Bert in 1902.")
    (documents / "broken.pdf").write_bytes(b"%PDF")
    file = tmp_path / "questions.csv"
    file.write_text("Question,Answer\nWho built the mill?,Anna|Anne\nWho burnt it?,Carl\n,Anna\nWho?,\n")
    loaded = load_cases(file, documents=documents, retrieve=2)
    (case,) = loaded.all
    assert {reason: places for reason, places in loaded.skipped.items() if "no passage holds" in reason} == {
        "no passage holds an accepted answer, and the format does not mark one": ("row 2",)
    }
    assert sum(map(len, loaded.skipped.values())) == 4
    assert any("broken.pdf" in reason and places == ("the documents",) for reason, places in loaded.skipped.items())
    assert case.example.answers == ("Anna", "Anne")
    assert "Anna" in case.example.passages[min(case.example.gold)].text
    with pytest.raises(InvalidInputError, match="--docs"):
        load_cases(file)


def test_moved_passages_keep_which_end_of_their_scores_is_the_better_one():
    passages = tuple(Passage(f"passage {i}", score=float(i)) for i in range(6))
    case = Case("1", Example("Who?", ("0",), passages, frozenset({0})))
    for position in ("first", "middle", "last"):
        moved = arrange(case, Cell(position=position), (), seed=0)
        assert moved.example.score_kind == "distance"
        assert moved.example.best_first()[0] in moved.example.gold
