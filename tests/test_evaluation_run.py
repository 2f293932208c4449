import json
import math
import re

import pytest
import torch

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.bench import bench
from focus_rag.evaluation.cases import FileCases, case_of
from focus_rag.evaluation.engine import Engine
from focus_rag.evaluation.methods import every_name, methods_named
from focus_rag.evaluation.methods.retrieval_rules import ScoreCutOff, ends_first
from focus_rag.evaluation.methods.scalars import QueryTemperature, SinkBias
from focus_rag.evaluation.methods.span_rivals import InstABoost, Pasta, SpotLight
from focus_rag.evaluation.methods.weight_edit import key_bias, target_share
from focus_rag.evaluation.report import write_report
from focus_rag.evaluation.runner import EvalSettings, evaluate
from focus_rag.generator import FocusGenerator
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def generator():
    model = tiny_model(vocab_size=270, max_position_embeddings=2048)
    return FocusGenerator(model, tiny_tokenizer(), tiny_profile(model))


def cases(n=12, passages=4):
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


def test_killed_and_resumed_gives_the_same_file(generator, tmp_path):
    chosen = {"methods": ("bare", "auto", "best fixed alpha", "alpha=0.2")}
    evaluate(generator, cases(), tmp_path / "whole", settings(**chosen))
    whole = (tmp_path / "whole" / "answers.jsonl").read_bytes()

    class Killed(Exception):
        pass

    def kill(label, done, total):
        if label.startswith("answering") and done == 3:
            raise Killed

    with pytest.raises(Killed):
        evaluate(generator, cases(), tmp_path / "killed", settings(**chosen), progress=kill)
    log = tmp_path / "killed" / "answers.jsonl"
    log.write_bytes(log.read_bytes() + b'{"cell": "n=4", "torn')
    assert len(log.read_bytes()) < len(whole)
    evaluate(generator, cases(), tmp_path / "killed", settings(**chosen))
    assert log.read_bytes() == whole
    evaluate(generator, cases(), tmp_path / "threads", settings(**chosen), workers=2)
    assert (tmp_path / "threads" / "answers.jsonl").read_bytes() == whole


def test_a_folder_holds_one_run(generator, tmp_path):
    evaluate(generator, cases(), tmp_path, settings(methods=("bare",)))
    with pytest.raises(InvalidInputError, match="another folder"):
        evaluate(generator, cases(), tmp_path, settings(methods=("bare",), seed=1))


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
        SinkBias(3.0),
        *methods_named(["context-aware decoding"]),
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


def test_reorder_puts_the_best_at_both_ends():
    assert ends_first([0, 1, 2, 3, 4]) == [0, 2, 4, 3, 1]


def test_cut_off_keeps_the_upper_half_of_the_scores(generator):
    (case, *_) = cases(1).all
    kept = ScoreCutOff()._cut(case)
    assert [one.score for one in kept.example.passages] == [4.0, 3.0]


def test_attention_shares_and_masses_are_probabilities(generator):
    engine = Engine(generator, max_new_tokens=4)
    for answered in engine.answer(list(cases(3).all), alpha=0.5):
        assert math.isclose(sum(answered.shares), 1.0, rel_tol=1e-4)
        assert 0 < answered.gold_mass + answered.sink_mass < 1


def test_bench_has_figures_for_methods_and_a_reason_for_every_rival_that_does_not_run(generator):
    rows = bench(generator, passages=2, questions=1, max_new_tokens=2)
    for name in every_name():
        assert rows[name]["first_token_seconds"] <= rows[name]["seconds"]
    for package in ("pastalib", "steering-vectors", "kvpress"):
        assert rows[package]["note"]
