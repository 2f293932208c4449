import itertools
import json
import math
import os
import re
from dataclasses import replace

import pytest
import torch

from focus_rag import __version__
from focus_rag.answers import GenerationSettings, Request
from focus_rag.confidence import Confidence
from focus_rag.errors import InvalidInputError
from focus_rag.evaluation import pictures
from focus_rag.evaluation.answering import Task, _record
from focus_rag.evaluation.bench import PLAIN, bench
from focus_rag.evaluation.cases import Cell, EmbeddedCases, FileCases, case_of
from focus_rag.evaluation.datasets import load_cases
from focus_rag.evaluation.engine import Answered, Engine
from focus_rag.evaluation.methods import every_name, methods_named
from focus_rag.evaluation.methods.context_aware import ContextAware
from focus_rag.evaluation.methods.focusing import ThenAuto
from focus_rag.evaluation.methods.retrieval_rules import KeepBest, ScoreCutOff, ends_first
from focus_rag.evaluation.methods.scalars import QueryTemperature, SinkBias
from focus_rag.evaluation.methods.span_rivals import InstABoost, Pasta, SpotLight
from focus_rag.evaluation.methods.split import FixedSplit, GoldSplit
from focus_rag.evaluation.methods.weight_edit import key_bias, target_share
from focus_rag.evaluation.questions import Screen, _first
from focus_rag.evaluation.report import _sections, verdict, write_report
from focus_rag.evaluation.results import Evaluation
from focus_rag.evaluation.runner import evaluate
from focus_rag.evaluation.settings import EvalSettings
from focus_rag.evaluation.workers import check_workers
from focus_rag.examples import question_key
from focus_rag.generator import FocusGenerator
from focus_rag.passages import Passage
from focus_rag.prompt_layout import PromptLayout
from focus_rag.score_split import ScoreSplit
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def generator():
    model = tiny_model(vocab_size=270, max_position_embeddings=2048)
    return FocusGenerator(model, tiny_tokenizer(), tiny_profile(model))


def cases(n=30, passages=4):
    rows = [
        {
            "id": f"q{number}",
            "question": f"Who is {number}?",
            "answers": [f"N{number}"],
            "passages": [
                {
                    "text": f"N{number} is." if place == 1 else f"No {place}.",
                    "score": 4.0 - place,
                    "is_gold": place == 1,
                }
                for place in range(passages)
            ],
        }
        for number in range(n)
    ]
    return FileCases("made", tuple(case_of(row) for row in rows), {})


def settings(**more):
    return EvalSettings(
        **{
            "counts": (2, 4),
            "limit": 4,
            "tune_limit": 2,
            "max_new_tokens": 3,
            "batch_size": 2,
            "speed_questions": 0,
            **more,
        }
    )


def test_every_method_answers_and_the_report_holds_them_all(generator, tmp_path):
    evaluation = evaluate(generator, cases(), tmp_path, settings(positions=("first",), gold_missing=True))
    assert set(evaluation.methods) == set(every_name())
    for cell in evaluation.cells:
        for method in evaluation.methods:
            assert len(evaluation.answers(cell, method)) == 4
    page = write_report(evaluation, tmp_path).read_text()
    assert not re.search(r"https?://|<script|url\(", page)
    assert all(name.split(",")[0] in page for name in evaluation.methods)
    assert (tmp_path / "quality_against_alpha.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cells"]["n=4"]["bare"]["quality"]["n"] == 4


def test_quality_is_graded_as_the_profile_was_fitted_unless_asked_otherwise(generator):
    fitted = generator.profile.replace(report={"grading": "exact"})
    assert settings().grading_of(None) == settings().grading_of(generator.profile) == "contains"
    assert settings().grading_of(fitted) == "exact"
    assert settings(grading="contains").grading_of(fitted) == "contains"


def test_the_report_says_what_counts_as_right(generator, tmp_path):
    evaluation = evaluate(generator, cases(), tmp_path, settings(methods=("bare",), grading="exact"))
    scores = [record["scores"] for record in evaluation.records]
    assert all(one["quality"] == one["exact_match"] for one in scores)
    assert "Quality is the exact match" in write_report(evaluation, tmp_path).read_text()
    with pytest.raises(InvalidInputError, match="grading"):
        evaluate(generator, cases(), tmp_path, settings(methods=("bare",), grading="contains"))


CHOSEN = {"methods": ("bare", "gold only", "auto", "best fixed alpha", "alpha=0.2", "alpha=1", "attention rerank")}


class Killed(Exception):
    """What stands for a kill."""


@pytest.mark.parametrize("at", [1, 4, 9, 14])
def test_killed_and_resumed_gives_the_same_file(generator, tmp_path, at):
    evaluate(generator, cases(), tmp_path / "whole", settings(**CHOSEN))
    whole = (tmp_path / "whole" / "answers.jsonl").read_bytes()
    calls = iter(range(1, 1000))

    def kill(label, done, total):
        if next(calls) == at:
            raise Killed

    with pytest.raises(Killed):
        evaluate(generator, cases(), tmp_path / "killed", settings(**CHOSEN), progress=kill)
    log = tmp_path / "killed" / "answers.jsonl"
    log.write_bytes(log.read_bytes() + b'{"cell": "n=4", "torn')
    assert len(log.read_bytes()) < len(whole)
    evaluate(generator, cases(), tmp_path / "killed", settings(**CHOSEN))
    assert log.read_bytes() == whole


def test_a_rerun_and_two_workers_give_the_same_file_and_another_seed_another(generator, tmp_path):
    files = []
    for name, seed, workers in (("first", 0, 1), ("again", 0, 1), ("two", 0, 2), ("other", 1, 1)):
        evaluate(generator, cases(), tmp_path / name, settings(**CHOSEN, seed=seed), workers=workers)
        files.append((tmp_path / name / "answers.jsonl").read_bytes())
    assert files[0] == files[1] == files[2] != files[3]


def test_a_worker_that_dies_is_an_error_and_not_a_short_file(generator, tmp_path, monkeypatch):
    monkeypatch.setattr("focus_rag.evaluation.answering._record", lambda *_: os._exit(3))
    with pytest.raises(RuntimeError, match="ended early"):
        evaluate(generator, cases(), tmp_path, settings(methods=("bare",)), workers=2)


def test_workers_need_a_model_on_the_cpu(generator, tmp_path):
    model = tiny_model(vocab_size=270, max_position_embeddings=2048).to("meta")
    with pytest.raises(InvalidInputError, match="worker"):
        check_workers(2, model)
    check_workers(1, model)


def test_what_was_asked_before_is_copied_and_not_asked_again(generator, tmp_path, monkeypatch):
    asked = []
    answer = Engine.answer

    def counted(self, some, **options):
        shown = [tuple(passage.text for passage in case.example.passages) for case in some]
        asked.extend((case.id, texts, options.get("alpha", 0.0)) for case, texts in zip(some, shown, strict=True))
        return answer(self, some, **options)

    monkeypatch.setattr(Engine, "answer", counted)
    methods = ("bare", "alpha=0", "gold only", "top 3 only", "long-context reorder", "alpha=0.5")
    evaluation = evaluate(generator, cases(), tmp_path, settings(methods=methods, counts=(1, 3), speed_questions=0))
    # One passage: alpha 0, gold alone, the top 3 and any order are the bare model, and gold alone is the same with 3.
    assert len(asked) == len(set(asked))
    # So with 3 passages bare and reorder are asked at alpha 0, with 1 only bare.
    numbers = [
        sum((len(texts), alpha) == one for _, texts, alpha in asked) for one in ((1, 0), (1, 0.5), (3, 0), (3, 0.5))
    ]
    assert numbers == [4, 4, 8, 4]
    for cell in evaluation.cells:
        for method in methods:
            alone = methods_named([method])[0]
            for case in cases().cases(Cell(count=int(cell[2:])), 4, 0):
                if case.id in (known := evaluation.answers(cell, method)):
                    (answered,) = alone.answer(Engine(generator, max_new_tokens=3), [case])
                    assert known[case.id]["text"] == answered.text
                    assert known[case.id]["alpha"] == answered.alpha
                    assert known[case.id]["shares"] == pytest.approx(answered.shares, abs=2e-5)
                    assert known[case.id]["gold_mass"] == pytest.approx(answered.gold_mass, abs=1e-5)


@pytest.mark.parametrize("split", [None, ScoreSplit(reach=0.0, tau=0.05)])
@pytest.mark.parametrize("room", [4, 1700])
def test_auto_is_told_what_the_generator_chooses(generator, room, split):
    generator = FocusGenerator(generator.model, generator.tokenizer, generator.profile.replace(split=split))
    engine = Engine(generator, max_new_tokens=room)  # room for the longer answer leaves some passages out
    some = [*cases(3).all, *(case.with_passages([0, 1]) for case in cases(3).all)]
    generator = FocusGenerator(generator.model, generator.tokenizer, generator.profile, settings=engine.settings)
    for case in some:
        request = Request(question=case.example.question, passages=case.example.passages)
        choice = generator._prepare(request).choice
        assert (
            engine.choice(case) == choice
            and (choice.alpha > 0) == (split is None)
            and bool(choice.favoured) == (split is not None)
        )


def test_attention_under_a_split_is_what_the_generator_reports(generator):
    profile = generator.profile.replace(split=ScoreSplit(tau=0.05))
    leaning = FocusGenerator(
        generator.model, generator.tokenizer, profile, settings=GenerationSettings(max_new_tokens=4)
    )
    auto, alone, bare = methods_named(["auto", "directions alone", "bare"])
    some = list(cases(3).all)
    for found, steered, plain in zip(
        *(method.answer(Engine(leaning, max_new_tokens=4), some) for method in (auto, alone, bare)), strict=True
    ):
        answer = leaning.answer(found.case.example.question, found.case.example.passages)
        assert (found.text, found.alpha) == (answer.text, 0.0) and steered.alpha > 0
        assert found.shares == pytest.approx([use.attention for use in answer.passages], abs=1e-4)
        assert 0 < found.gold_mass + found.sink_mass < 1
        assert max(found.shares) > max(plain.shares) + 0.05


def test_confidence_is_what_the_generator_reports(generator, tmp_path):
    known = generator.profile.replace(confidence=Confidence(intercept=2.0, weights=(0.1, 0.2, 1.0, -1.0)))
    sure = FocusGenerator(generator.model, generator.tokenizer, known, settings=GenerationSettings(max_new_tokens=3))
    evaluation = evaluate(sure, cases(12), tmp_path / "run", settings(methods=("bare", "auto"), max_new_tokens=3))
    assert all(0 < record["confidence"] < 1 for record in evaluation.records)
    case = cases(1).all[0]
    (answered,) = Engine(sure, max_new_tokens=3).answer([case], alpha="auto", split="auto")
    example = case.example
    assert answered.confidence == pytest.approx(
        sure.run(
            Request(question=example.question, passages=example.passages, score_kind=example.score_kind)
        ).confidence,
        abs=1e-6,
    )
    unsure = evaluate(generator, cases(12), tmp_path / "other", settings(methods=("bare",), max_new_tokens=3))
    assert {record["confidence"] for record in unsure.records} == {None} and unsure.telling(
        "bare"
    ) == {} == unsure.summary()["confidence"]


def test_right_answers_are_told_from_wrong_ones_over_all_cells_and_sayings_that_nothing_is_stated_left_out(tmp_path):
    def record(cell: str, number: int, quality: float, confidence: float | None, abstained: float = 0.0) -> dict:
        return {"cell": cell, "method": "auto", "id": str(number), "question": f"q{number}", "answers": ["a"], "text": "a", "alpha": 0.1,
                "scores": {"quality": quality, "abstained": abstained}, "shares": [], "gold": [0], "confidence": confidence}  # fmt: skip

    records = [record("n=5", number, number % 2, 0.8 if number % 2 else 0.4) for number in range(40)]
    records += [record("gold missing", number, 0.0, 0.05) for number in range(20)] + [
        record("gold missing", number, 1.0, 0.01, 1.0) for number in range(20, 40)
    ]
    records += [record("n=5", 50, 1.0, None)]
    evaluation = Evaluation(
        tuple(records), ("n=5", "gold missing"), ("auto",), "n=5", {"grading": "exact"}, {}, frozenset(), {}, {}
    )
    told = evaluation.telling("auto")
    assert (told["answers"], told["right"], told["auroc"]["mean"]) == (60, 20, 1.0)
    assert told["below"] == {"0.1": [0.0, 0.5], "0.3": [0.0, 0.5], "0.5": [0.0, 1.0]}
    (table,) = [rows for title, _, (_, rows) in _sections(evaluation) if title == "How likely an answer is right"]
    assert table == [["auto", "60", "20", "100.0 [100.0, 100.0]", "0.0, 50.0", "0.0, 50.0", "0.0, 100.0"]]
    right = Evaluation(
        tuple(one for one in records if one["scores"]["quality"]),
        ("n=5",),
        ("auto",),
        "n=5",
        {"grading": "exact"},
        {},
        frozenset(),
        {},
        {},
    )
    assert right.telling("auto") == {"answers": 20, "right": 20}  # nothing to be told apart
    assert not [title for title, _, _ in _sections(right) if title == "How likely an answer is right"]


def test_a_split_on_random_heads_is_a_control_of_its_own(generator):
    leaning = generator.profile.top(1).replace(split=ScoreSplit(tau=0.01))
    engine = Engine(FocusGenerator(generator.model, generator.tokenizer, leaning), max_new_tokens=1)
    auto, control = methods_named(["auto", "random heads"])
    (case, *_) = cases(1).all
    assert (
        len(
            {
                auto.ask(engine, case).key,
                control.ask(engine, case).key,
                methods_named(["bare"])[0].ask(engine, case).key,
            }
        )
        == 3
    )
    plain, steered = methods_named(["bare"])[0].answer(engine, [case])[0], control.answer(engine, [case])[0]
    assert steered.alpha == 0.0
    # The contextual heads themselves are not split; what reaches them through the others is little.
    assert steered.shares == pytest.approx(plain.shares, abs=0.02)
    assert max(auto.answer(engine, [case])[0].shares) > max(plain.shares) + 0.1


def test_the_headline_has_more_questions_and_rivals_fewer_elsewhere(generator, tmp_path):
    chosen = settings(methods=("bare", "auto", "alpha=0.2"), main_limit=9, rival_limit=2, main_count=4)
    evaluation = evaluate(generator, cases(), tmp_path, chosen)
    n = {(cell, name): evaluation.interval(cell, name).n for cell in evaluation.cells for name in evaluation.methods}
    assert n == {
        ("n=2", "bare"): 4, ("n=2", "auto"): 4, ("n=2", "alpha=0.2"): 2,
        ("n=4", "bare"): 9, ("n=4", "auto"): 9, ("n=4", "alpha=0.2"): 4,
    }  # fmt: skip
    assert evaluation.difference("n=4", "auto", "alpha=0.2").n == 4
    write_report(evaluation, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| questions | 4 | 9 |" in text
    assert re.search(r"^\| alpha=0.2 \| [\d.]+ \(n=2\) \| [\d.]+ \(n=4\) \|$", text, re.MULTILINE)


def test_questions_that_are_reported_on_choose_nothing(generator, tmp_path):
    tuned = settings(methods=("bare", "best fixed alpha", "auto"))
    few = FileCases("few", cases(2).all, {})
    evaluation = evaluate(generator, few, tmp_path / "few", tuned)
    assert "untuned" in evaluation.skipped["best fixed alpha"]
    assert evaluation.methods == ("bare", "auto")
    assert evaluation.run["dev_data"] is None
    assert "untuned" in write_report(evaluation, tmp_path / "few").read_text()
    same = evaluate(generator, cases(), tmp_path / "same", settings(methods=tuned.methods, limit=30), dev=cases())
    assert "untuned" in same.skipped["best fixed alpha"]
    others = FileCases("others", cases(60).all[30:], {})
    tested = evaluate(generator, cases(), tmp_path / "others", tuned, dev=others)
    assert tested.choices["best fixed alpha"]["questions"] == 2
    reported = {record["question"] for record in tested.records}
    log = [json.loads(line) for line in (tmp_path / "others" / "answers.jsonl").read_text().splitlines()]
    assert not reported & {record["question"] for record in log if record["cell"] == "dev"}


def test_cells_without_questions_are_named_and_none_at_all_is_an_error(generator, tmp_path):
    evaluation = evaluate(generator, cases(), tmp_path, settings(methods=("bare",), counts=(2, 4, 20)))
    assert evaluation.cells == ("n=2", "n=4")
    assert evaluation.main_cell == "n=4"
    assert "the cell n=20" in evaluation.skipped
    with pytest.raises(InvalidInputError, match="--counts"):
        evaluate(generator, cases(), tmp_path / "none", settings(methods=("bare",), counts=(20,)))


def test_a_folder_holds_one_run(generator, tmp_path):
    evaluate(generator, cases(), tmp_path, settings(methods=("bare",)))
    with pytest.raises(InvalidInputError, match="differs in questions, settings; give another folder"):
        evaluate(generator, cases(), tmp_path, settings(methods=("bare",), seed=1))
    model = tiny_model(vocab_size=270, max_position_embeddings=2048, seed=5)
    retrained = FocusGenerator(model, tiny_tokenizer(), tiny_profile(model))
    with pytest.raises(InvalidInputError, match="differs in weights"):
        evaluate(retrained, cases(), tmp_path, settings(methods=("bare",)))
    other = cases(29)
    with pytest.raises(InvalidInputError, match="differs in questions"):
        evaluate(generator, other, tmp_path, settings(methods=("bare",)))


@pytest.mark.parametrize("kept", ["answers.jsonl", "speed.json"])
def test_results_that_do_not_say_what_they_are_of_are_not_taken(generator, tmp_path, kept):
    evaluate(generator, cases(), tmp_path, settings(methods=("bare",), speed_questions=1))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(
        InvalidInputError, match=r"run.json is damaged .*; delete it, answers.jsonl and speed.json, or give"
    ):
        evaluate(generator, cases(), tmp_path, settings(methods=("bare",), speed_questions=1))
    for file in tmp_path.iterdir():
        if file.name != kept:
            file.unlink()
    with pytest.raises(
        InvalidInputError, match=rf"holds {kept} without the run.json .*; delete it, or give another folder"
    ):
        evaluate(generator, cases(), tmp_path, settings(methods=("bare",), speed_questions=1))
    (tmp_path / kept).unlink()
    evaluate(generator, cases(), tmp_path, settings(methods=("bare",), speed_questions=1))


def test_a_run_with_another_prompt_is_another_run(generator, tmp_path):
    some = settings(methods=("bare",), limit=1)
    evaluate(generator, cases(), tmp_path, some)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["versions"]["focus_rag"] == __version__ and run["window"] == generator.context_window

    def made(tokenizer=None, **more):
        options = {"profile": generator.profile, **more}
        return FocusGenerator(generator.model, tokenizer or generator.tokenizer, **options)

    chatty = tiny_tokenizer()
    chatty.chat_template = "{% for message in messages %}User: {{ message['content'] }}\n{% endfor %}"
    wider = tiny_tokenizer()
    wider.add_tokens(["mill"])
    for other, differing in (
        (made(layout=PromptLayout(question_first=False)), "layout"),
        (made(profile=generator.profile.replace(passages_at=7)), "profile"),
        (made(chatty), "tokenizer"),
        (made(wider), "tokenizer"),
    ):
        with pytest.raises(InvalidInputError, match=f"differs in {differing};"):
            evaluate(other, cases(), tmp_path, some)


def test_dev_questions_are_cut_after_reported_ones_are_left_out(generator, tmp_path):
    tuned = settings(methods=("bare", "best fixed alpha"), limit=20, tune_limit=4, counts=(4,))
    for seed in range(3):
        chosen = tuned.model_copy(update={"seed": seed})
        evaluation = evaluate(generator, cases(40), tmp_path / str(seed), chosen, dev=cases(40))
        assert evaluation.choices["best fixed alpha"]["questions"] == 4


def test_questions_that_the_profile_was_fitted_on_are_left_out_and_counted(generator, tmp_path):
    names = [case.example.key[:12] for case in cases().all]
    fitted = generator.profile.replace(provenance={"trained_on": names[:10], "chosen_on": names[8:20]})
    knowing = FocusGenerator(generator.model, generator.tokenizer, fitted)
    some = settings(methods=("bare", "best fixed alpha"), limit=8, counts=(4,))
    evaluation = evaluate(knowing, cases(), tmp_path, some)
    log = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {record["cell"] for record in log} == {"n=4", "dev"}
    assert {record["id"] for record in log} <= {f"q{number}" for number in range(20, 30)}
    reported = set(evaluation.answers("n=4", "bare"))
    assert 0 < len(reported) < 10 and not reported & {record["id"] for record in log if record["cell"] == "dev"}
    assert evaluation.run["left_out"] == {"the profile was fitted on it": 20}
    assert "Left out: the profile was fitted on it (20)" in write_report(evaluation, tmp_path).read_text()
    known = FileCases("known", cases(20).all, {})
    with pytest.raises(InvalidInputError, match=r"no question for any.*Left out: the profile was fitted on it \(20\)"):
        evaluate(knowing, known, tmp_path / "none", some)


def test_generated_questions_that_the_profile_was_fitted_on_are_drawn_over(generator, tmp_path):
    some = settings(methods=("bare",), counts=(2,))
    plain = evaluate(generator, EmbeddedCases(), tmp_path / "plain", some)
    first = next(iter(EmbeddedCases().cases(Cell(count=2), 1, 0)))
    fitted = generator.profile.replace(provenance={"trained_on": [first.example.key[:12]]})
    evaluation = evaluate(
        FocusGenerator(generator.model, generator.tokenizer, fitted), EmbeddedCases(), tmp_path / "new", some
    )
    assert len(evaluation.answers("n=2", "bare")) == len(plain.answers("n=2", "bare")) == 4
    assert first.id in plain.answers("n=2", "bare") and first.id not in evaluation.answers("n=2", "bare")
    assert evaluation.run["left_out"] == {"the profile was fitted on it": 1}


def test_a_question_that_does_not_fit_the_window_is_left_out_and_counted(generator, tmp_path):
    (first, *rest) = cases(8).all
    long = replace(first, example=replace(first.example, question="Who? " * 500))
    evaluation = evaluate(
        generator, FileCases("made", (long, *rest), {}), tmp_path, settings(methods=("bare", "closed book"), limit=9)
    )
    assert evaluation.run["left_out"] == {"the question alone does not fit the model's window": 1}
    assert first.id not in evaluation.answers("n=4", "bare")


def test_a_source_without_end_of_which_no_question_fits_is_given_up(generator, tmp_path, monkeypatch):
    monkeypatch.setattr("focus_rag.evaluation.engine.Engine.fits", lambda *_: False)
    with pytest.raises(InvalidInputError, match="the question alone does not fit"):
        evaluate(generator, EmbeddedCases(), tmp_path, settings(methods=("bare",), counts=(2,), limit=2))


def test_half_a_surrogate_pair_is_written_and_read_again(generator, tmp_path):
    (first, *_) = cases(1).all
    odd = replace(first, example=replace(first.example, question="Who is \ud83d?"))
    some = settings(methods=("bare",), counts=(2,), limit=1)
    runs = [evaluate(generator, FileCases("made", (odd,), {}), tmp_path, some).records for _ in range(2)]
    assert runs[0] == runs[1] and runs[1][0]["question"] == "Who is \ud83d?"


def test_an_answer_is_not_copied_where_the_window_leaves_out_other_passages(generator, tmp_path):
    def long(case):
        passages = tuple(replace(one, text=one.text + " x" * 400) for one in case.example.passages)
        return replace(case, example=replace(case.example, passages=passages))

    source = FileCases("long", tuple(long(case) for case in cases(6).all), {})
    evaluation = evaluate(
        generator, source, tmp_path, settings(methods=("bare",), counts=(4,), limit=6, shuffled_scores=True)
    )
    engine, bare = Engine(generator, max_new_tokens=3), methods_named(["bare"])[0]
    plain, shuffled = evaluation.cells
    known, changed = evaluation.answers(shuffled, "bare"), 0
    for case in source.cases(Cell(count=4, shuffled_scores=True), None, 0):
        if case.id in known:
            (answered,) = bare.answer(engine, [case])
            assert known[case.id]["shares"] == pytest.approx(answered.shares, abs=2e-5)
            changed += known[case.id]["shares"] != evaluation.answers(plain, "bare")[case.id]["shares"]
    assert changed > 0


def test_a_report_without_the_bare_model_compares_nothing_with_it(generator, tmp_path):
    evaluation = evaluate(generator, cases(), tmp_path, settings(methods=("auto", "gold only")))
    write_report(evaluation, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "nan" not in text and "| questions | 4 | 4 |" in text and "against bare" not in text
    assert "no method was tuned (one question in 5 of made is kept for that)" in text


def test_a_run_with_other_line_separators_in_its_questions_is_resumed(generator, tmp_path):
    (first, *_) = cases(1).all
    odd = replace(first, id="odd\u2028one\x85two")
    source = FileCases("made", (odd,), {})
    some = settings(methods=("bare",), counts=(2,), limit=1)
    runs = [evaluate(generator, source, tmp_path, some).records for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0][0]["id"] == odd.id


def test_a_place_that_cannot_hold_a_run_is_named(generator, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be the folder"):
        evaluate(generator, cases(), tmp_path / "file", settings(methods=("bare",)))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"run\.json is damaged"):
        evaluate(generator, cases(), tmp_path, settings(methods=("bare",)))


def test_without_a_profile_the_rest_still_runs(tmp_path):
    bare = FocusGenerator(tiny_model(vocab_size=270, max_position_embeddings=2048), tiny_tokenizer())
    evaluation = evaluate(bare, cases(), tmp_path, settings(methods=("bare", "auto", "top 3 only", "sink bias")))
    assert evaluation.methods == ("bare", "top 3 only")
    assert set(evaluation.skipped) == {"auto", "sink bias"}


def test_unknown_methods_are_refused_and_any_alpha_is_known():
    with pytest.raises(InvalidInputError, match="No method 'focus'"):
        methods_named(["focus"])
    assert methods_named(["alpha=0.35"])[0].alpha == 0.35


@pytest.mark.parametrize(
    "method",
    [
        Pasta("top 1", alpha=1.0),
        InstABoost("all", factor=1.0),
        SpotLight("all", share=0.0),
        SinkBias(0.0),
        QueryTemperature(1.0),
    ],
    ids=lambda method: type(method).__name__,
)
def test_edits_of_nothing_change_nothing(generator, method):
    engine = Engine(generator, max_new_tokens=8)
    some = list(cases(5).all)
    expected = [answered.text for answered in engine.answer(some)]
    assert [answered.text for answered in method.answer(engine, some)] == expected


def test_batches_answer_as_single_questions_do(generator):
    engine = Engine(generator, max_new_tokens=8)
    some = [case.with_passages(range(1 + index)) for index, case in enumerate(cases(3).all)]
    for method in (
        Pasta("top 1"),
        SpotLight("top 1", share=0.5),
        InstABoost("gold", 5.0),
        SinkBias(3.0),
        ContextAware(0.5),
        GoldSplit(),
        FixedSplit(ScoreSplit(tau=0.05)),
        *methods_named(["bare", "auto", "alpha=-0.5", "random heads", "attention rerank", "top 3 only"]),
    ):
        together = [answered.text for answered in method.answer(engine, some)]
        assert together == [method.answer(engine, [case])[0].text for case in some]


def test_key_bias_is_a_bias_on_the_logits():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    marked = torch.tensor([0.0, 1, 0, 1, 0]).expand(2, 1, 1, 5)
    torch.testing.assert_close(key_bias(-1.7)(logits.softmax(-1), marked), (logits - 1.7 * marked).softmax(-1))


def test_target_share_lifts_what_is_below_and_leaves_what_is_above():
    weights = torch.tensor([[0.1, 0.9], [0.6, 0.4]])
    marked = torch.tensor([1.0, 0.0])
    lifted = target_share(0.5)(weights, marked)
    # log(0.5 / 0.1) on the logits: 0.1 * 5 against 0.9.
    torch.testing.assert_close(lifted, torch.tensor([[0.5 / 1.4, 0.9 / 1.4], [0.6, 0.4]]))


def test_reorder_is_that_of_langchain_and_llama_index():
    # Their loop by hand: from the worst one on, every other one is put first, the rest last.
    assert ends_first([1, 2, 3, 4, 5]) == [1, 3, 5, 4, 2]
    assert ends_first([1, 2, 3, 4]) == [2, 4, 3, 1]


def test_cut_off_keeps_the_upper_half_of_the_scores(generator):
    (case, *_) = cases(1).all
    kept = ScoreCutOff()._cut(case)
    assert [one.score for one in kept.example.passages] == [4.0, 3.0]


def test_keep_best_shows_what_a_generator_keeps(generator):
    (case, *_) = cases(1).all
    keeping = FocusGenerator(
        generator.model,
        generator.tokenizer,
        generator.profile,
        settings=GenerationSettings(max_new_tokens=4),
        keep_best=2,
    )
    used = [use.passage for use in keeping.answer(case.example.question, case.example.passages).passages if use.used]
    shown = KeepBest(2).ask(Engine(generator), case).shown
    assert list(shown.example.passages) == used and len(used) == 2 < len(case.example.passages)
    falling_but_once = [0.9, 0.6, 0.61, *(0.5 - i / 100 for i in range(12))]
    no_order = [0.2, 0.9, 0.4, 0.8, 0.1, 0.7]
    leaning = generator.profile.replace(split=ScoreSplit(reach=0.0, tau=0.05))
    for scores, kind in itertools.product((falling_but_once, no_order), (None, "unknown")):
        passages = tuple(Passage(f"text {i}", score=score) for i, score in enumerate(scores))
        one = replace(case, example=replace(case.example, question="Who?", passages=passages, score_kind=kind))
        product = FocusGenerator(
            generator.model, generator.tokenizer, leaning, settings=GenerationSettings(max_new_tokens=4), keep_best=3
        )
        engine = Engine(FocusGenerator(generator.model, generator.tokenizer, leaning), max_new_tokens=4)
        (answered,) = ThenAuto(KeepBest(3)).answer(engine, [one])
        answer = product.answer("Who?", passages, score_kind=kind)
        assert (answered.text, answered.alpha) == (answer.text, answer.alpha)
        assert any(use.favoured for use in answer.passages) == (scores is falling_but_once)
    named = methods_named(["keep best 3", "keep best 12, then auto"])
    assert named == [KeepBest(3), ThenAuto(KeepBest(12))] and [one.name for one in named] == [
        "keep best 3",
        "keep best 12, then auto",
    ]
    with pytest.raises(InvalidInputError, match="keep best NUMBER"):
        methods_named(["keep best 0"])
    (whole,) = methods_named(["keep best 8"])
    assert whole.ask(Engine(generator), case).shown == case  # there are no more


def test_a_rule_then_auto_is_focused_as_the_passages_it_leaves_are(generator):
    engine = Engine(generator, max_new_tokens=4)
    for rule in ("score cut-off", "top 3 only"):
        combined, alone, auto = methods_named([f"{rule}, then auto", rule, "auto"])
        for case in cases(4).all:
            shown = alone.ask(engine, case).shown
            assert combined.ask(engine, case) == auto.ask(engine, shown)
            (ours,), (theirs,) = combined.answer(engine, [case]), auto.answer(engine, [shown])
            assert (ours.text, ours.alpha, ours.shares) == (theirs.text, theirs.alpha, theirs.shares)
            assert len(ours.shares) < len(case.example.passages) and ours.alpha > 0


def test_attention_shares_and_masses_are_probabilities(generator):
    engine = Engine(generator, max_new_tokens=4)
    for answered in engine.answer(list(cases(3).all), alpha=0.5):
        assert math.isclose(sum(answered.shares), 1.0, rel_tol=1e-4)
        assert 0 < answered.gold_mass + answered.sink_mass < 1


def test_bench_has_figures_for_methods_and_a_reason_for_every_rival_that_does_not_run(generator):
    rows = bench(generator, passages=2, questions=1, max_new_tokens=2)
    for name in every_name():
        assert rows[name]["first_token_seconds"] <= rows[name]["seconds"]
    assert rows[PLAIN]["seconds"] > 0
    for package in ("pastalib", "steering-vectors", "kvpress"):
        assert rows[package]["note"]


def made_evaluation(right, cells=("n=20",)):
    """An evaluation from the quality by method and question."""
    records = [
        {"cell": cell, "method": method, "id": str(number), "question": question, "text": "", "alpha": 0.3,
         "scores": {"quality": float(quality)}, "shares": [], "gold": [0]}
        for cell in cells for method, answers in right.items() for number, (question, quality) in enumerate(answers)
    ]  # fmt: skip
    return Evaluation(tuple(records), tuple(cells), tuple(right), cells[-1], {}, {}, frozenset(), {}, {})


def test_regret_is_paired_on_the_questions_that_both_answered(monkeypatch):
    everything = [(str(number), number < 50) for number in range(200)]
    methods = {
        "bare": everything,
        "directions alone": everything,
        "alpha=0.2": everything[:50],
        "alpha=0.5": everything[:50],
    }
    drawn = []
    canvas = pictures._canvas

    def watched(*given, **named):
        figure, axes = canvas(*given, **named)
        bars = axes.barh
        axes.barh = lambda at, widths, **more: (drawn.append(list(widths)), bars(at, widths, **more))[1]
        return figure, axes

    monkeypatch.setattr(pictures, "_canvas", watched)
    assert pictures._regret(made_evaluation(methods))
    assert drawn == [[0.0], [0.0]]


def test_copies_of_a_question_count_as_one():
    right = [("a", 1), ("b", 0), ("c", 1), ("d", 1), ("e", 0), ("f", 1)]
    wrong = [("a", 0), ("b", 0), ("c", 1), ("d", 0), ("e", 0), ("f", 0)]
    once = made_evaluation({"bare": wrong, "auto": right, "gold only": [(name, 1) for name, _ in right]})
    copied = made_evaluation({name: [one for one in once_of for _ in range(5)] for name, once_of in (
        ("bare", wrong), ("auto", right), ("gold only", [(name, 1) for name, _ in right]))})  # fmt: skip
    assert copied.interval("n=20", "auto") == once.interval("n=20", "auto") and once.interval("n=20", "auto").n == 6
    assert copied.difference("n=20", "auto", "bare") == once.difference("n=20", "auto", "bare")
    assert copied.recovered("n=20", "auto") == pytest.approx(once.recovered("n=20", "auto"))
    uneven = made_evaluation({"bare": [("a", 1), ("a ", 1), ("a", 0), ("b", 0)]})
    assert (
        uneven.interval("n=20", "bare").mean
        == pytest.approx(1 / 3)
        == uneven._by_question({"0": 1, "1": 1, "2": 0, "3": 0})["a"] / 2
    )


def test_the_verdict_names_what_won_and_what_was_against_auto():
    def record(method, number, quality, cell="n=20"):
        scores = {"quality": float(quality)}
        return {"cell": cell, "method": method, "id": str(number), "question": str(number), "text": "", "alpha": 0.0,
                "scores": scores, "shares": [], "gold": [0]}  # fmt: skip

    right = {"bare": range(0, 40), "gold only": range(0, 100), "auto": range(0, 70), "sink bias": range(0, 90)}
    records = [record(method, number, number in those) for method, those in right.items() for number in range(100)]
    # In another cell auto loses to the bare model.
    records += [record("bare", number, True, "n=5") for number in range(30)]
    records += [record("auto", number, number < 15, "n=5") for number in range(30)]
    evaluation = Evaluation(
        tuple(records), ("n=5", "n=20"), tuple(right), "n=20", {}, {}, frozenset({"gold only"}), {}, {}
    )
    first, strongest, against, cells = verdict(evaluation)
    assert "auto is right in 70.0%, the bare model in 40.0%: +30.0 [" in first
    assert "50% of the way" in first
    assert "strongest alternative is sink bias: auto minus it is -20.0" in strongest
    assert against == "Against auto: better than it at 95% is sink bias."
    assert cells == "Against auto: worse than the bare model at 95% in n=5."


def test_an_answer_that_misleading_passages_support_is_counted(generator):
    rows = [{"id": "r", "question": "Who?", "answers": ["Anna"], "wrong_answers": ["Bert", "?"],
             "passages": [{"text": "Anna did.", "is_gold": True}, {"text": "Bert did.", "is_gold": False}]}]  # fmt: skip
    case = case_of(rows[0])
    assert case.wrong_answers == ("Bert",)
    task = Task("bare", methods_named(["bare"])[0], "as given", (case,))
    for text, wrong in (("Bert", 1.0), ("Anna", 0.0), ("Carl", 0.0)):
        assert _record(task, case, Answered(case, text, 0.0, 1, 1), "contains")["scores"]["wrong_answer"] == wrong


def test_looking_at_gold_counts_only_where_there_is_something_else_to_look_at(generator):
    (case, *_) = cases(1).all
    task = Task("bare", methods_named(["bare"])[0], "n=4", (case,))
    gold, none = case.with_passages([1]), case.with_passages([0, 2])
    shown = {"right": (case, (0.1, 0.7, 0.1, 0.1), True), "wrong": (case, (0.7, 0.1, 0.1, 0.1), False),
             "gold alone": (gold, (1.0,), None), "gold cut off": (none, (0.5, 0.5), False)}  # fmt: skip
    for one, shares, expected in shown.values():
        assert _record(task, case, Answered(one, "x", 0.0, 1, 1, shares), "contains")["source_correct"] is expected


def test_a_small_limit_finds_the_few_questions_of_a_file_that_are_wanted() -> None:
    """Sixteen draws in vain say nothing of a file, whose end is known."""
    some = cases(200).all
    wanted = some[150].example.key
    found = _first(FileCases("made", some, {}), Cell(), 1, 2, lambda case: case.example.key == wanted)
    assert [case.example.key for case in found] == [wanted]


@pytest.mark.parametrize("method", ["top 3 only", "score cut-off"])
def test_leaving_passages_out_turns_no_scores_round(method: str) -> None:
    scores = [5.0, 9.0, 4.0, 8.0, 7.0, 3.0, 9.5, 2.0]  # in an order that says nothing, and the best of them rise
    passages = [{"text": f"Passage {i}.", "score": score, "is_gold": i == 1} for i, score in enumerate(scores)]
    case = case_of({"question": "Which?", "answers": ["Passage 1"], "passages": passages})
    shown = methods_named([method])[0].ask(None, case).shown.example
    assert len(shown.passages) < 8 and {passage.score for passage in shown.passages} == {None}


def test_what_a_file_asks_in_other_words_is_left_out_where_the_profile_was_fitted_on_it(generator, tmp_path) -> None:
    ranked = {"qid": "1", "query": "Who built the mill?", "ctxs": [
        {"id": i, "text": f"Passage {i} of the archive.", "title": "", "label": float(i == 2)} for i in range(4)
    ]}  # fmt: skip
    file = tmp_path / "rerank.jsonl"
    file.write_text(json.dumps(ranked) + "\n")
    (case,) = load_cases(file).all
    assert case.example.question != "Who built the mill?"
    engine = Engine(generator, max_new_tokens=3)
    assert Screen(engine).admits(case)
    fitted_on = generator.profile.replace(provenance={"chosen_on": [question_key("Who built the mill?")[:12]]})
    engine = Engine(FocusGenerator(generator.model, generator.tokenizer, fitted_on), max_new_tokens=3)
    assert not Screen(engine).admits(case)


def test_what_nobody_can_know_is_marked_in_every_table(generator, tmp_path) -> None:
    evaluation = evaluate(generator, cases(), tmp_path, settings(methods=("bare", "gold only", "auto", "alpha=0.5")))
    assert evaluation.bounds == {"gold only", "per-question best alpha"}
    write_report(evaluation, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.count("| per-question best alpha * |") == 2 == text.count("| gold only * |")
