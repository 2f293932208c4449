"""A fit ends with a profile and a report, refuses what it cannot use, and comes to the same end after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import tiny_model
from tiny_tokenizer import tiny_tokenizer

from focus_rag.alpha import AlphaChoice, FittedAlpha
from focus_rag.cli import main
from focus_rag.errors import InvalidInputError, UnsupportedModelError
from focus_rag.examples import Example, examples_from_rows
from focus_rag.fingerprint import Fingerprint
from focus_rag.fitting.asking import answer_texts
from focus_rag.fitting.cloze_examples import examples_from_documents
from focus_rag.fitting.direction_training import TrainingSettings
from focus_rag.fitting.fit import fit_profile
from focus_rag.fitting.polishing import PolishSettings
from focus_rag.fitting.settings import FitSettings
from focus_rag.fitting.steps import FitSteps, fit_digest
from focus_rag.noise import signal_of
from focus_rag.passages import Passage, RetrievalSignal
from focus_rag.profile import FocusProfile
from focus_rag.score_split import ScoreSplit

SETTINGS = FitSettings(
    response="both", polish=PolishSettings(steps=2, batch_examples=1),
    min_examples=8, score_examples=4, train_examples=6, head_counts=(1, 3), choice_questions=3, choice_counts=(2, 4), choice_alphas=(0.5,),
    dev_questions=4, counts=(2, 4), alphas=(0.5, 1.0), split_reaches=(0.3, 0.0), split_taus=(0.1, 0.03), max_new_tokens=3, min_answered=0.0, batch=4, max_rows=3,
    training=TrainingSettings(epochs=2, batch_examples=4),
)  # fmt: skip


def small_model() -> Any:
    return tiny_model("llama", vocab_size=262, max_position_embeddings=1024)


def small_examples(count: int = 12) -> list[Example]:
    rng = random.Random(0)
    examples = []
    for number in range(count):
        answer = str(rng.randint(100, 999))
        passages = [Passage(f"Mill {i} is {rng.randint(100, 999)} old.", score=rng.random()) for i in range(4)]
        passages[number % 4] = Passage(f"Mill {number} is {answer} years old.", score=0.9)
        examples.append(Example(f"How old is mill {number}?", (answer,), tuple(passages), frozenset({number % 4})))
    return examples


def wordless_examples(count: int) -> list[Example]:
    """The same, asked in words that no passage has."""
    return [
        replace(one, question=f"Which of them, number {number + 1000}?", score_kind="cosine")
        for number, one in enumerate(small_examples(count))
    ]


def same(first: FocusProfile, second: FocusProfile) -> bool:
    return torch.equal(first.directions, second.directions) and first._manifest == second._manifest


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FocusProfile]:
    out = tmp_path_factory.mktemp("whole")
    return out, fit_profile(small_model(), tiny_tokenizer(), small_examples(), out, SETTINGS)


def test_a_fit_leaves_a_profile_and_its_report(uninterrupted: tuple[Path, FocusProfile]) -> None:
    out, profile = uninterrupted
    assert same(FocusProfile.load(out), profile)
    assert profile.site == "post_rope" and profile.heads[0].score is not None
    assert profile.passages_at and f"begin at token {profile.passages_at} and turned" in (out / "report.md").read_text()
    assert [entry.score for entry in profile.heads] == sorted((entry.score for entry in profile.heads), reverse=True)
    figures = json.loads((out / "report.json").read_text())
    assert [(cell["count"], cell["noise"]) for cell in figures["cells"]] == [(2, 1.0), (4, 1.0), (2, 0.0), (4, 0.0)]
    assert figures["choice"]["cells"] == [[2, 1.0], [4, 1.0], [4, 0.0]] and figures["warnings"] == []
    assert figures["choice"]["oracle"]["heads"] == len(profile.heads)
    assert {name: row["gain"]["n"] for name, row in figures["order"].items()} == {"as retrieved": 4, "shuffled": 4}
    assert [(row["reach"], len(row["cells"])) for row in figures["split"]["tried"]] == [(0.3, 5), (0.3, 5), (0.0, 5)]
    assert figures["split"]["chosen"] is None and profile.split is None
    variants = {row["variant"] for row in figures["choice"]["table"]}
    assert any(name.startswith("random") for name in variants)
    assert (
        len([name for name in variants if name.endswith("-polished")]) == 2
    )  # the best ones and the random ones alike
    text = (out / "report.md").read_text()
    for image in ("heads.png", "mass.png", "alpha.png", "quality.png", "surface.png"):
        assert image in text and (out / image).stat().st_size > 1000
    assert not list(out.glob(".fit-*"))


def test_a_profile_whose_directions_harm_in_another_order_relies_on_it(
    uninterrupted: tuple[Path, FocusProfile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not uninterrupted[1].policy.needs_order  # type: ignore[union-attr]
    monkeypatch.setattr("focus_rag.fitting.alpha_and_split.order_warning", lambda figures, margin: "harm when shuffled")
    monkeypatch.setattr(FittedAlpha, "focuses", True)
    settings = SETTINGS.model_copy(update={"response": "gold", "polish": PolishSettings(steps=0)})
    profile = fit_profile(small_model(), tiny_tokenizer(), small_examples(), tmp_path, settings)
    assert profile.policy.needs_order  # type: ignore[union-attr]
    assert FocusProfile.load(tmp_path).policy == profile.policy
    assert "harm when shuffled" in (tmp_path / "report.md").read_text()


def test_a_finished_fit_is_not_repeated(uninterrupted: tuple[Path, FocusProfile]) -> None:
    out, profile = uninterrupted
    phases: list[str] = []
    again = fit_profile(
        small_model(), tiny_tokenizer(), small_examples(), out, SETTINGS, progress=lambda name, *_: phases.append(name)
    )
    assert same(again, profile) and not phases


_KILLED_IN = [
    "scoring heads",
    "recording",
    "training directions (mass)",
    "choosing heads and loss",
    "polishing directions",
    "measuring activation",
    "fitting alpha",
    "fitting the split",
]
_SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_fitting import SETTINGS, small_examples, small_model
from tiny_tokenizer import tiny_tokenizer
from focus_rag.fitting.fit import fit_profile
def progress(phase, done, total):
    if phase == {phase!r} and done >= max(total // 2, 1):
        os.kill(os.getpid(), signal.SIGKILL)
fit_profile(small_model(), tiny_tokenizer(), small_examples(), {out!r}, SETTINGS, progress=progress)
"""


@pytest.mark.parametrize("phase", _KILLED_IN)
def test_a_killed_fit_ends_like_an_uninterrupted_one(
    phase: str, tmp_path: Path, uninterrupted: tuple[Path, FocusProfile]
) -> None:
    here = Path(__file__).parent
    script = _SCRIPT.format(tests=str(here), phase=phase, out=str(tmp_path))
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=here.parent,
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not (tmp_path / "focus_profile.json").exists()
    resumed = fit_profile(small_model(), tiny_tokenizer(), small_examples(), tmp_path, SETTINGS)
    assert same(resumed, uninterrupted[1])
    assert (tmp_path / "report.json").read_text() == (uninterrupted[0] / "report.json").read_text()


def test_other_weights_or_examples_start_anew(tmp_path: Path, uninterrupted: tuple[Path, FocusProfile]) -> None:
    other = fit_profile(small_model(), tiny_tokenizer(), small_examples(11), tmp_path, SETTINGS)
    assert other.provenance["digest"] != uninterrupted[1].provenance["digest"]
    changed = small_model()
    with torch.no_grad():
        changed.lm_head.weight.add_(0.01)
    assert (
        fit_profile(changed, tiny_tokenizer(), small_examples(11), tmp_path, SETTINGS).provenance["digest"]
        != other.provenance["digest"]
    )


def test_alpha_goes_where_answers_get_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With grades that rise with alpha among four passages and fall among two, the policy follows both; a split has
    nothing to add.
    """

    def graded(generator: Any, examples: list[Example], alpha: Any, **options: Any) -> list[float]:
        alpha = generator.profile.policy if alpha == "auto" else alpha
        choose = alpha.choose if hasattr(alpha, "choose") else lambda signal: AlphaChoice(alpha, "")
        found = []
        for one in examples:
            factor = choose(signal_of(one.passages)).alpha
            helped = len(one.passages) != 2 and factor >= 0.5
            found.append(1.0 if helped or len(one.passages) == 1 else 0.0 if factor else float(len(one.passages) == 2))
        return found

    monkeypatch.setattr("focus_rag.fitting.answers.measure_quality", graded)
    profile = fit_profile(
        small_model(), tiny_tokenizer(), small_examples(40), tmp_path, SETTINGS.model_copy(update={"dev_questions": 16})
    )
    at = {count: profile.policy.choose(RetrievalSignal(count, 1.0, "given", "")).alpha for count in (1, 2, 4, 30)}
    assert at[1] == at[2] == 0.0 and at[4] == at[30] >= 0.5
    cells = {cell["count"]: cell for cell in profile.report["cells"]}
    assert cells[4]["bare"]["mean"] == 0.0 and cells[4]["auto"]["mean"] == 1.0 and cells[4]["regret"] == 0.0
    assert cells[2]["auto"]["mean"] == 1.0
    text = (tmp_path / "report.md").read_text()
    assert (
        "Alpha is above 0 at 4 passages." in text and "the profile leans on nothing" in text and profile.split is None
    )


def test_a_profile_leans_where_that_answers_for_certain_more_than_its_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every question needs the one exponent on the best scored passage alone, and its scores as they are."""
    scores = {tuple(passage.score for passage in one.passages) for one in wordless_examples(40)}

    def graded(generator: Any, examples: list[Example], alpha: Any, **options: Any) -> list[float]:
        split = generator.profile.split if generator.profile is not None and options.get("split") == "auto" else None
        is_right = split == ScoreSplit(reach=0.0, tau=0.03)
        return [
            float(is_right and (len(one.passages) < 4 or tuple(passage.score for passage in one.passages) in scores))
            for one in examples
        ]

    monkeypatch.setattr("focus_rag.fitting.answers.measure_quality", graded)
    settings = SETTINGS.model_copy(update={"dev_questions": 16, "split_taus": (0.03, 0.1), "noises": (1.0,)})
    profile = fit_profile(small_model(), tiny_tokenizer(), wordless_examples(40), tmp_path, settings)
    assert profile.split == FocusProfile.load(tmp_path).split == ScoreSplit(reach=0.0, tau=0.03)
    figures = profile.report["split"]
    assert (
        figures["chosen"] == {"reach": 0.0, "tau": 0.03, "fewest": 2, "by": "scores", "without_scores": False}
        and figures["tried"][-1]["gain"]["mean"] == 1.0
    )
    assert figures["shuffled_scores"]["split"]["mean"] < 0.5
    assert {by: found["n"] for by, found in figures["finds_gold"].items()} == {"scores": 16, "words": 16, "both": 16}
    assert "Chosen: reach 0, tau 0.03, from 2 passages on." in (tmp_path / "report.md").read_text()


def unscored(count: int = 12) -> list[Example]:
    return [one.without_scores() for one in small_examples(count)]


def test_a_split_found_by_scores_goes_by_words_where_that_holds_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(out: Path, without: float) -> FocusProfile:
        def graded(generator: Any, examples: list[Example], alpha: Any, **options: Any) -> list[float]:
            if options.get("split") != "auto":
                return [0.0 for _ in examples]
            return [1.0 if one.passages[0].score is not None else without for one in examples]

        monkeypatch.setattr("focus_rag.fitting.answers.measure_quality", graded)
        settings = SETTINGS.model_copy(update={"dev_questions": 16, "split_taus": (0.1,)})
        return fit_profile(small_model(), tiny_tokenizer(), wordless_examples(40), out, settings)

    by_words, by_scores = fitted(tmp_path / "a", 1.0), fitted(tmp_path / "b", 0.0)
    assert by_words.split == ScoreSplit(reach=0.3, tau=0.1, without_scores=True) and by_scores.split == ScoreSplit(
        reach=0.3, tau=0.1
    )
    assert by_words.report["split"]["without_scores"]["gain"]["mean"] == 1.0
    assert "by shared words where there are no scores." in (tmp_path / "a" / "report.md").read_text()
    assert "which is not enough to do that" in (tmp_path / "b" / "report.md").read_text()


def test_questions_without_scores_are_split_by_words_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = fit_profile(small_model(), tiny_tokenizer(), unscored(), tmp_path / "none", SETTINGS)
    assert none.split is None and all(row["by"] == "words" for row in none.report["split"]["tried"])
    asked: set[str] = set()

    def graded(generator: Any, examples: list[Example], alpha: Any, **options: Any) -> list[float]:
        asked.update(one.question for one in examples)
        return [float(options.get("split") == "auto" and generator.profile.split.by == "words") for _ in examples]

    monkeypatch.setattr("focus_rag.fitting.answers.measure_quality", graded)
    settings = SETTINGS.model_copy(update={"dev_questions": 16})
    profile = fit_profile(small_model(), tiny_tokenizer(), unscored(40), tmp_path / "some", settings)
    assert profile.split is not None and profile.split.by == "words" and "without_scores" not in profile.report["split"]
    assert "by the words they share with the question. `gain`" in (tmp_path / "some" / "report.md").read_text()


def test_passages_that_nothing_tells_apart_get_no_split(tmp_path: Path) -> None:
    strange = [
        replace(one, question=f"Mystery {letter}?") for letter, one in zip("bcdefghijklm", unscored(), strict=True)
    ]
    profile = fit_profile(small_model(), tiny_tokenizer(), strange, tmp_path, SETTINGS)
    assert profile.split is None and profile.report["split"]["tried"] == []
    assert "Not fitted: no split was to be tried" in (tmp_path / "report.md").read_text()


def test_the_models_own_answers_are_generated_once_for_all_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[str] = []
    real = answer_texts

    def counted(generator: Any, examples: list[Example], alpha: Any, **options: Any) -> list[str]:
        answered.extend(f"{one.key} {len(one.passages)}" for one in examples)
        return real(generator, examples, alpha, **options)

    monkeypatch.setattr("focus_rag.fitting.answers.answer_texts", counted)
    settings = SETTINGS.model_copy(update={"response": "model"})
    fit_profile(small_model(), tiny_tokenizer(), small_examples(), tmp_path, settings)
    train = settings.train_examples
    assert len(answered) == train + len(answered[train:]) and len(set(answered)) == len(answered)
    assert len(answered) == train + 2 * settings.dev_questions  # from gold alone, and where the heads look


@pytest.mark.parametrize(("grading", "expected"), [(None, 0.5), ("exact", 0.5), ("contains", 1.0)])
def test_answers_that_run_on_are_no_gain_for_a_model_that_answers_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grading: Any, expected: float
) -> None:
    """Half of the questions need alpha 0.5, the other half 1, at which no answer ends after the value."""

    def said(generator: Any, examples: list[Example], alpha: Any, **options: Any) -> list[str]:
        def text(example: Example) -> str:
            policy = generator.profile.policy if alpha == "auto" else alpha
            factor = (
                policy.choose(signal_of(example.passages)) if hasattr(policy, "choose") else AlphaChoice(policy, "")
            ).alpha
            value, alone = example.answers[0], len(example.passages) == len(example.gold)
            if not alone and factor < (0.5 if int(example.key, 16) % 2 else 1.0):
                return "another place"
            return f"{value}.. tonnes" if factor >= 1 else value

        return [text(one) for one in examples]

    for module in ("answers", "asking"):
        monkeypatch.setattr(f"focus_rag.fitting.{module}.answer_texts", said)
    settings = SETTINGS.model_copy(update={"dev_questions": 16, "grading": grading})
    profile = fit_profile(small_model(), tiny_tokenizer(), small_examples(40), tmp_path, settings)
    assert profile.report["grading"] == (grading or "exact")
    assert profile.policy.choose(RetrievalSignal(4, 1.0, "given", "")).alpha == expected
    told = {"exact": "are an accepted answer and nothing else", "contains": "hold an accepted answer"}
    assert f"answers that {told[grading or 'exact']}." in (tmp_path / "report.md").read_text()


def test_training_on_shuffled_passages_leaves_dev_questions_as_retrieved(
    uninterrupted: tuple[Path, FocusProfile], tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"training_order": "shuffled"})
    profile = fit_profile(small_model(), tiny_tokenizer(), small_examples(), tmp_path, settings)
    assert not torch.equal(profile.directions, uninterrupted[1].directions)
    found, expected = (json.loads((folder / "report.json").read_text()) for folder in (tmp_path, uninterrupted[0]))
    assert found["choice"]["bare"] == expected["choice"]["bare"]


def test_a_model_whose_rotation_is_not_known_is_fitted_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(model: Any) -> None:
        raise UnsupportedModelError("no")

    monkeypatch.setattr("focus_rag.fitting.directions.Turning.of", unknown)
    profile = fit_profile(small_model(), tiny_tokenizer(), small_examples(), tmp_path, SETTINGS)
    assert profile.passages_at is None and "tied to where passages begin" in (tmp_path / "report.md").read_text()


def test_examples_over_the_same_passages_cannot_be_calmed_and_the_report_says_so(tmp_path: Path) -> None:
    passages = [Passage(f"Mill {i} is {100 + i} years old.", score=1 - i / 10) for i in range(4)]
    examples = [
        Example(f"How old is mill {i % 4}, asked {i}?", (str(100 + i % 4),), tuple(passages), frozenset({i % 4}))
        for i in range(12)
    ]
    profile = fit_profile(small_model(), tiny_tokenizer(), examples, tmp_path, SETTINGS)
    (warning,) = profile.report["warnings"]
    assert "No retrievals of noise 0 could be made at 2, 4 passages" in warning
    assert f"**Warning.** {warning}" in (tmp_path / "report.md").read_text()
    assert {cell["noise"] for cell in profile.report["cells"]} == {1.0}


def test_a_model_that_answers_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="answers 0% of"):
        fit_profile(
            small_model(),
            tiny_tokenizer(),
            small_examples(),
            tmp_path,
            SETTINGS.model_copy(update={"min_answered": 0.5}),
        )


def test_documents_without_labels_are_enough(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(12):
        text = (
            f"The mill of the town {number} was built in {1800 + number} by local masons, who stayed. Nobody "
            "lives there now."
        )
        (docs / f"{number}.txt").write_text(text)
    found = examples_from_documents(docs, passages=4)
    profile = fit_profile(small_model(), tiny_tokenizer(), found, tmp_path / "profile", SETTINGS)
    assert profile.provenance["examples"]["usable"] == 12 and (tmp_path / "profile" / "report.md").is_file()


def test_one_example_is_refused_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = {
        "question": "q",
        "answers": ["a"],
        "passages": [{"text": "a", "is_gold": True}, {"text": "b", "is_gold": False}],
    }
    file = tmp_path / "one.jsonl"
    file.write_text("\n".join([json.dumps(one), "no json", json.dumps({**one, "passages": []})]))
    assert main(["fit", "--examples", str(file), "--out", str(tmp_path / "profile")]) == 2
    said = capsys.readouterr().err
    assert "1 usable examples and at least 24 are needed" in said and "not a JSON object: 1; no passages: 1" in said


def test_too_few_examples_are_refused_with_the_reasons(tmp_path: Path) -> None:
    found = examples_from_rows([{"question": "q", "answers": ["a"], "passages": [{"text": "b", "is_gold": False}]}] * 3)
    with pytest.raises(InvalidInputError, match="no gold passage: 3"):
        fit_profile(small_model(), tiny_tokenizer(), found, tmp_path, SETTINGS)


def test_a_step_is_computed_once_and_whole(tmp_path: Path) -> None:
    steps = FitSteps(tmp_path, "x")
    (steps.folder / "a.unfinished").write_text("{")
    assert steps.step("a", lambda: [0.1]) == [0.1]
    assert FitSteps(tmp_path, "x").step("a", lambda: pytest.fail("computed again")) == [0.1]


def test_a_fit_of_the_same_weights_that_would_answer_otherwise_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(change: Any) -> str:
        model, tokenizer = small_model(), tiny_tokenizer()
        change(model, tokenizer)
        return fit_digest(model, tokenizer, Fingerprint.of(small_model()), small_examples(), SETTINGS)

    changes = (
        lambda model, tokenizer: None,
        lambda model, tokenizer: setattr(tokenizer, "chat_template", tokenizer.chat_template + " "),
        lambda model, tokenizer: setattr(model.generation_config, "repetition_penalty", 3.0),
        lambda model, tokenizer: model.to(torch.bfloat16).to(torch.float16),
    )
    assert len({digest(change) for change in changes}) == len(changes)
    assert digest(changes[0]) == digest(changes[0])
    before = digest(changes[0])
    monkeypatch.setattr("focus_rag.__version__", "99.0")
    assert digest(changes[0]) != before


@pytest.mark.parametrize("damage", ["{", '{"unknown": 1}'])
def test_a_damaged_profile_is_made_anew(tmp_path: Path, uninterrupted: tuple[Path, FocusProfile], damage: str) -> None:
    (tmp_path / "focus_profile.json").write_text(damage)
    profile = fit_profile(small_model(), tiny_tokenizer(), small_examples(), tmp_path, SETTINGS)
    assert same(profile, uninterrupted[1]) and same(FocusProfile.load(tmp_path), profile)


def test_a_fit_counts_the_passages_that_the_window_shows(tmp_path: Path) -> None:
    """As requests do: what was fitted for more passages than fit would never act."""
    model, tokenizer = small_model(), tiny_tokenizer()
    model.config.max_position_embeddings = 240  # room for three of the four, bytes being tokens
    unused = (
        replace(small_examples(1)[0], question="x" * 280),
        replace(
            small_examples(2)[1],
            passages=(Passage("y" * 290 + " 1 is 1"), Passage("z")),
            gold=frozenset({0}),
            question="Y?",
        ),
    )
    settings = SETTINGS.model_copy(update={"counts": (2, 4), "min_examples": 8})
    profile = fit_profile(model, tokenizer, [*small_examples(20), *unused], tmp_path, settings)
    counts = {cell["count"] for cell in profile.report["cells"]}
    assert counts <= {2, 3} and 2 in counts
    assert any("20 questions have more passages than fit" in said for said in profile.report["warnings"])
    assert profile.provenance["examples"]["skipped"] == {
        "the question alone does not fit the model's window": 1,
        "the model's window has no room for more than the gold passages": 1,
    }


@pytest.mark.parametrize(
    "given",
    [
        {"counts": (0,)}, {"counts": ()}, {"noises": (2.0,)}, {"alphas": (1.0, 0.5)}, {"alphas": (0.0,)}, {"alphas": ()},
        {"losses": ()}, {"sites": ()}, {"head_counts": ()}, {"head_counts": (0,)}, {"choice_alphas": ()}, {"choice_counts": (0,)},
        {"choice_alphas": (float("inf"),)}, {"oracle_taus": (0.0,)},
    ],
)  # fmt: skip
def test_settings_that_no_fit_can_use_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        FitSettings(**given)


def test_quick_measures_less() -> None:
    quick = FitSettings().quick()
    assert quick.dev_questions < FitSettings().dev_questions and len(quick.alphas) < len(FitSettings().alphas)
    assert FitSettings.model_validate(quick.model_dump()) == quick
