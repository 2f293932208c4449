"""A fit that takes heads and directions from another profile: what it keeps, which questions it may use, what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fitting import SETTINGS, same, small_examples, small_model, wordless_examples
from tiny_models import tiny_model
from tiny_tokenizer import tiny_tokenizer

from focus_rag.cli import main
from focus_rag.errors import InvalidInputError, ProfileMismatchError
from focus_rag.fingerprint import Fingerprint
from focus_rag.fitting.fit import fit_profile
from focus_rag.profile import FocusProfile, HeadEntry
from focus_rag.score_split import ScoreSplit
from tests.fit_command import fit_command


def published() -> FocusProfile:
    """As an import leaves it: no contextual scores, no place of the passages, key directions that are never applied."""
    known = Fingerprint.of(small_model())
    torch.manual_seed(0)
    directions = torch.randn(2, known.head_dim)
    heads = [HeadEntry(layer=1, head=2), HeadEntry(layer=0, head=1)]
    fingerprint = Fingerprint(
        model_id="someone/model", layers=known.layers, query_heads=known.query_heads, head_dim=known.head_dim
    )
    return FocusProfile(
        fingerprint,
        heads,
        directions,
        site="post_rope",
        key_directions=-directions,
        provenance={"source": "published somewhere"},
    )


def test_heads_and_directions_stay_and_alpha_and_split_are_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With grades that one split alone raises, that split is found, for directions that nobody trained here."""

    def graded(generator: Any, examples: list[Any], alpha: Any, **options: Any) -> list[float]:
        split = generator.profile.split if generator.profile is not None and options.get("split") == "auto" else None
        return [float(split == ScoreSplit(reach=0.0, tau=0.03)) for _ in examples]

    monkeypatch.setattr("focus_rag.fitting.answers.measure_quality", graded)
    given, phases = published(), set()
    settings = SETTINGS.model_copy(update={"split_taus": (0.03,), "dev_questions": 16})
    profile = fit_profile(
        small_model(),
        tiny_tokenizer(),
        wordless_examples(20),
        tmp_path,
        settings,
        directions_of=given,
        progress=lambda name, *_: phases.add(name),
    )
    assert phases == {"measuring activation", "fitting alpha", "fitting the split", "fitting confidence"}
    assert torch.equal(profile.directions, given.directions) and torch.equal(
        profile.key_directions, given.key_directions
    )
    assert profile.heads == given.heads and profile.site == given.site and profile.passages_at is None
    assert profile.split == ScoreSplit(reach=0.0, tau=0.03) and profile.policy.kind == "fitted"
    assert profile.fingerprint.key_heads and profile.fingerprint.tokenizer  # of the model it was fitted on, all of it
    assert profile.provenance["directions"] == {"source": "published somewhere"}
    assert profile.provenance["examples"]["train"] == 0 and profile.provenance["examples"]["dev"] == 16
    text = (tmp_path / "report.md").read_text()
    assert "those of another profile (source: published somewhere)" in text and "applied as they are" in text
    assert "Choice of loss" not in text and "heads.png" not in text and not (tmp_path / "heads.png").exists()
    assert same(FocusProfile.load(tmp_path), profile)


def test_questions_that_the_directions_were_trained_on_are_left_out(tmp_path: Path) -> None:
    examples = small_examples(40)
    settings = SETTINGS.model_copy(update={"train_examples": 40})
    first = fit_profile(small_model(), tiny_tokenizer(), examples[:20], tmp_path / "first", settings)
    trained_on = first.provenance["trained_on"]
    assert len(trained_on) == first.provenance["examples"]["train"] == 12
    second = fit_profile(small_model(), tiny_tokenizer(), examples, tmp_path / "second", SETTINGS, directions_of=first)
    assert second.provenance["examples"]["skipped"] == {"the directions were trained on it": 12}
    assert second.provenance["trained_on"] == trained_on and "trained_on" not in second.provenance["directions"]
    chosen_on = {*first.provenance["chosen_on"], *second.provenance["chosen_on"]}
    assert set(first.provenance["chosen_on"]) - {one.key[:12] for one in examples[20:]}
    assert second.provenance["chosen_on"] == sorted(chosen_on)  # an evaluation leaves them all out
    trained = [one for one in examples if one.key[:12] in trained_on]
    with pytest.raises(InvalidInputError, match=r"has 0 usable examples .* the directions were trained on it: 12"):
        fit_profile(small_model(), tiny_tokenizer(), trained, tmp_path / "third", SETTINGS, directions_of=second)


def test_other_directions_are_another_fit(tmp_path: Path) -> None:
    given = published()
    fitted = [
        fit_profile(
            small_model(), tiny_tokenizer(), small_examples(), tmp_path, SETTINGS, directions_of=one
        ).provenance["digest"]
        for one in (given, given, given.replace(directions=2 * given.directions), given.top(1))
    ]
    assert fitted[0] == fitted[1] and len(set(fitted)) == 3


def test_a_profile_of_another_model_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    other = tiny_model("llama", vocab_size=262, num_hidden_layers=5)
    with pytest.raises(ProfileMismatchError, match="layers"):
        fit_profile(other, tiny_tokenizer(), small_examples(), tmp_path / "out", SETTINGS, directions_of=published())
    assert not (tmp_path / "out").exists()


def test_dev_questions_are_those_that_the_model_answers_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = small_examples(40)

    def said(generator: Any, asked: list[Any], alpha: Any, **options: Any) -> list[str]:
        return [one.answers[0] if int(one.key, 16) % 4 == 0 else "unknown" for one in asked]

    monkeypatch.setattr("focus_rag.fitting.answers.answer_texts", said)
    answerable = sum(int(one.key, 16) % 4 == 0 for one in examples)
    settings = SETTINGS.model_copy(update={"answerable_among": 40, "dev_questions": 40})
    profile = fit_profile(
        small_model(), tiny_tokenizer(), examples, tmp_path / "a", settings, directions_of=published()
    )
    assert profile.provenance["examples"]["dev"] == answerable < 20
    assert (
        "Dev questions are such, among 40, as the model answers from their gold passages alone."
        in (tmp_path / "a" / "report.md").read_text()
    )
    few = settings.model_copy(update={"min_examples": 40})
    with pytest.raises(InvalidInputError, match=f"answers {answerable} of 40 dev questions, and at least 20"):
        fit_profile(small_model(), tiny_tokenizer(), examples, tmp_path / "b", few, directions_of=published())


def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "focus_rag.fitting.settings.FitSettings.quick",
        lambda given: SETTINGS.model_copy(update={"answerable_among": given.answerable_among}),
    )
    model, tokenizer = small_model(), tiny_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    published().save(tmp_path / "given")
    rows = [
        {
            "question": one.question,
            "answers": list(one.answers),
            "passages": [
                {"text": each.text, "score": each.score, "is_gold": i in one.gold}
                for i, each in enumerate(one.passages)
            ],
        }
        for one in small_examples()
    ]
    common = fit_command(tmp_path, rows, "--quick")
    assert main([*common, "--directions-of", str(tmp_path / "given"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["heads"] == 2
    assert FocusProfile.load(tmp_path / "out").provenance["directions"]["source"] == "published somewhere"
    assert main([*common, "--directions-of", str(tmp_path / "nowhere")]) == 2
    assert "No profile at" in capsys.readouterr().err
    assert main([*common, "--directions-of", str(tmp_path / "given"), "--answerable-among", "12"]) == 2
    assert "are needed to choose by" in capsys.readouterr().err
