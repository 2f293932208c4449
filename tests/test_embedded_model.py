"""The model that comes with the package: it loads without arguments, fits the wheel, and its profile is its own."""

from __future__ import annotations

import json

import pytest

from focus_rag import FocusGenerator, FocusProfile, generated_examples
from focus_rag.embedded import demo_folder, embedded_model_folder, embedded_profile_folder
from focus_rag.embedded.retrieval import evaluation_examples
from focus_rag.passages import Passage

LARGEST_BYTES = 24_000_000


@pytest.fixture(scope="module")
def generator() -> FocusGenerator:
    return FocusGenerator.from_pretrained()


def test_the_weights_fit_the_wheel_and_need_no_pickle() -> None:
    files = [path for path in embedded_model_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}


def test_it_loads_without_arguments_and_its_profile_is_its_own(generator: FocusGenerator) -> None:
    profile = FocusProfile.load(embedded_profile_folder())
    profile.check(generator.model, generator.tokenizer)
    assert generator.profile is not None
    assert [head.score for head in profile.heads] == sorted((head.score for head in profile.heads), reverse=True)


def test_the_profile_was_fitted_on_the_questions_that_a_fit_takes_by_itself() -> None:
    provenance = FocusProfile.load(embedded_profile_folder()).provenance
    generated = {one.key[:12] for one in generated_examples().examples}
    trained_on, chosen_on = set(provenance["trained_on"]), set(provenance["chosen_on"])
    assert (
        trained_on < generated <= trained_on | chosen_on and not trained_on & chosen_on
    )  # confidence was fitted on more of them
    assert len(generated & {one.key[:12] for one in generated_examples(1).examples}) < 10


def test_it_repeats_the_statement_that_was_asked_for(generator: FocusGenerator) -> None:
    """The shape of an answer is learnt, whatever its value; how often the value is right stands in the model card."""
    for example in evaluation_examples("test", 5, 1, rich=0.0):
        passages = [Passage(p["text"], score=p["score"], title=p["title"]) for p in example["passages"]]
        answer = generator.answer(example["question"], passages, max_new_tokens=40)
        statement, value = example["answers"]
        assert answer.text.startswith(statement.removesuffix(f"{value}."))
        assert answer.finish_reason == "stop"


def test_the_demo_has_documents_for_its_questions() -> None:
    documents = {path.name for path in demo_folder().glob("*.md")}
    asked = [json.loads(line) for line in (demo_folder() / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(asked) == 35
    assert {row["document"] for row in asked} <= documents
