"""Which questions a fit chooses by, how many it takes, and what it leaves out and says about it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_fit_given_directions import published
from test_fitting import SETTINGS, same, small_examples, small_model
from tiny_tokenizer import tiny_tokenizer

from focus_rag import generated_examples
from focus_rag.cli import main
from focus_rag.errors import InvalidInputError, ProfileError
from focus_rag.examples import Example
from focus_rag.fitting.alpha_fitting import pooled
from focus_rag.fitting.estimate import Estimate
from focus_rag.fitting.fit import fit_profile
from focus_rag.fitting.settings import FitSettings
from focus_rag.fitting.sweep_cells import cells_of
from focus_rag.passages import Passage
from focus_rag.profile import FocusProfile
from focus_rag.weights_digest import weights_digest


def fit(examples: list[Example], out: Path, **changes: Any) -> FocusProfile:
    given = changes.pop("directions_of", published())
    return fit_profile(
        small_model(), tiny_tokenizer(), examples, out, SETTINGS.model_copy(update=changes), directions_of=given
    )


def wider(example: Example, by: int) -> Example:
    extra = tuple(Passage(f"Extra {i} of {example.question}", score=0.0) for i in range(by))
    return replace(example, passages=(*example.passages, *extra))


def test_one_wide_question_decides_nothing(tmp_path: Path) -> None:
    first, *others = small_examples(10)
    profile = fit(
        [wider(first, 4), *others], tmp_path, min_examples=10, dev_questions=10, counts=(8, 20), noises=(1.0,)
    )
    assert [(cell["count"], cell["questions"]) for cell in profile.report["cells"]] == [(4, 10)]


@pytest.mark.parametrize("values", [[], [1.0]])
def test_of_no_or_one_answer_nothing_is_certain(values: list[float]) -> None:
    assert (Estimate.of(values).low, Estimate.of(values).high) == (-1.0, 1.0)
    if values:
        found = pooled([(["a"], values), (["a"], values)])
        assert (found.mean, found.low, found.n) == (1.0, -1.0, 1)


def test_gold_is_missing_only_where_nothing_else_holds_the_answer() -> None:
    examples = small_examples(8)
    told = [
        replace(one, passages=tuple(Passage(f"Also {one.answers[0]}.", each.score) for each in one.passages))
        for one in examples[:5]
    ]
    cells, _ = cells_of([*told, *examples[5:]], [], [4], [1.0], 2)
    assert [one.question for one in cells[-1].questions] == [examples[5].question] and cells[-1].gold_missing
    cells, _ = cells_of(told, [], [4], [1.0], 2)
    assert not any(cell.gold_missing for cell in cells)


def test_few_questions_are_not_said_to_share_their_passages(tmp_path: Path) -> None:
    profile = fit(small_examples(10), tmp_path, min_examples=10, dev_questions=4)
    assert profile.report["warnings"] == []


def test_questions_that_do_not_fit_are_left_out_and_counted(tmp_path: Path) -> None:
    examples = small_examples(10)
    long = replace(examples[0], question="How old is it " * 400)
    profile = fit([long, *examples[1:], examples[1]], tmp_path)
    assert profile.provenance["examples"]["skipped"] == {"the question alone does not fit the model's window": 1}
    assert profile.provenance["examples"]["dev"] == 4 and len(profile.provenance["chosen_on"]) == 4


def test_a_model_that_answers_few_is_fitted_on_those(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = small_examples(40)
    answered = {one.key for one in examples[:6]}
    monkeypatch.setattr(
        "focus_rag.fitting.answers.answer_texts",
        lambda _g, asked, _a, **_: [one.answers[0] if one.key in answered else "" for one in asked],
    )
    profile = fit(examples, tmp_path, answerable_among=40, min_answered=0.5)
    assert profile.provenance["examples"]["dev"] == 4
    # What the model could not answer has chosen as well: an evaluation would report on nothing else.
    assert profile.provenance["chosen_on"] == sorted(one.key[:12] for one in examples)


def test_directions_that_do_not_say_what_they_were_trained_on_are_warned_of(tmp_path: Path) -> None:
    unknown = published().replace(provenance={"source": "focus-rag fit"})
    assert (
        "does not say which questions"
        in fit(small_examples(), tmp_path / "a", directions_of=unknown).report["warnings"][-1]
    )
    assert "does not say which questions" in (tmp_path / "a" / "report.md").read_text()
    known = published().replace(provenance={"source": "focus-rag fit", "trained_on": []})
    assert fit(small_examples(), tmp_path / "b", directions_of=known).report["warnings"] == []


def test_key_directions_and_provenance_make_another_fit(tmp_path: Path) -> None:
    given = published()
    others = [given, given.replace(key_directions=None), given.replace(provenance={"source": "elsewhere"})]
    assert len({fit(small_examples(), tmp_path, directions_of=one).provenance["digest"] for one in others}) == 3


def test_pictures_of_an_earlier_fit_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "heads.png").write_bytes(b"old")
    fit(small_examples(), tmp_path)
    assert not (tmp_path / "heads.png").exists()


def test_a_save_that_was_cut_short_is_found_out_and_the_fit_goes_on(tmp_path: Path) -> None:
    whole = fit(small_examples(), tmp_path / "whole")
    out = tmp_path / "cut"
    fit(small_examples(11), out)
    work = tmp_path / "work"
    fit(small_examples(), work, keep_work=True)
    # The tensors of the new profile beside the manifest of the old one, and the steps of the new fit.
    save_file({"query_directions": torch.zeros_like(whole.directions)}, out / "directions.safetensors")
    shutil.copytree(next(work.glob(".fit-*")), out / f".fit-{whole.provenance['digest']}")
    with pytest.raises(ProfileError, match="two halves of different profiles"):
        FocusProfile.load(out)
    assert same(fit(small_examples(), out), whole)
    assert same(FocusProfile.load(out), whole)


def test_a_profile_of_before_has_no_digest_of_its_tensors_and_is_read(tmp_path: Path) -> None:
    published().save(tmp_path)
    manifest = json.loads((tmp_path / "focus_profile.json").read_text())
    assert len(manifest.pop("tensors")) == 16
    (tmp_path / "focus_profile.json").write_text(json.dumps(manifest))
    assert torch.equal(FocusProfile.load(tmp_path).directions, published().directions)


def test_weights_in_buffers_count() -> None:
    model = small_model()
    model.register_buffer("packed", torch.zeros(8, dtype=torch.uint8))
    before = weights_digest(model)
    model.packed[3] = 1
    assert weights_digest(model) != before


def test_quick_stays_on_the_grid_that_was_asked_for() -> None:
    assert FitSettings(alphas=(0.1, 0.2, 0.3)).quick().alphas == (0.1, 0.2)
    assert FitSettings().quick().alphas == (0.5, 1.0)


def test_training_options_are_refused_where_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--shuffle"], ["--polish", "3"], ["--site", "projection"]):
        assert main(["fit", "--examples", "x.jsonl", "--out", str(tmp_path), "--directions-of", "y", *option]) == 2
        assert "leave them out with --directions-of" in capsys.readouterr().err


def test_a_site_that_is_asked_for_is_the_one_that_is_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[FitSettings] = []

    def fit_profile(model: Any, tokenizer: Any, given: Any, out: Any, settings: FitSettings, **_: Any) -> Any:
        asked.append(settings)
        raise InvalidInputError("enough")

    monkeypatch.setattr("focus_rag.fitting.fit.fit_profile", fit_profile)
    rows = [
        {
            "question": f"q{i}",
            "answers": ["red"],
            "passages": [{"text": f"red {i}", "is_gold": True}, {"text": "b", "is_gold": False}],
        }
        for i in range(30)
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["fit", "--examples", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "p"), "--site"]
    assert main([*common, "projection", "--quick"]) == 2
    assert asked[0].sites == ("projection",)
    assert main([*common, "elsewhere"]) == 2
    assert "--site is one of post_rope, normed, projection; got 'elsewhere'" in capsys.readouterr().err


def test_without_questions_of_ones_own_generated_ones_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []

    def fit_profile(model: Any, tokenizer: Any, given: Any, *_: Any, **__: Any) -> Any:
        taken.append(given)
        raise InvalidInputError("enough")

    monkeypatch.setattr("focus_rag.fitting.fit.fit_profile", fit_profile)
    assert main(["fit", "--out", str(tmp_path)]) == 2
    assert taken == [generated_examples()]
    assert "fitting on generated questions" in capsys.readouterr().err
    both = ["--examples", str(tmp_path / "x.jsonl"), "--from-documents", str(tmp_path)]
    assert main(["fit", "--out", str(tmp_path), *both]) == 2
    assert "Give either --examples FILE or --from-documents FOLDER" in capsys.readouterr().err
    assert main(["fit", "--out", str(tmp_path), "--score-kind", "cosine"]) == 2
    assert "--score-kind says what the scores of --examples are" in capsys.readouterr().err
