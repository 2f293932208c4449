"""From a framework's call to a request: whose settings win, which passages and scores go with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from focus_rag import (
    CapturedPassages,
    FocusGenerator,
    FocusSettings,
    GenerationSettings,
    InvalidInputError,
    Passage,
    ScoreSplit,
)
from focus_rag.passages import as_passages
from tests.integrations.recording_generator import RecordingGenerator


class Model(FocusSettings):
    """The smallest model of an adapter."""

    max_tokens: int | None = None

    @classmethod
    def passages_of(cls, values: Sequence[Any]) -> tuple[Passage, ...]:
        return as_passages(values)


RISING = tuple(Passage(f"Passage {i} of a store.", score) for i, score in enumerate([0.2, 0.5, 0.9]))


def captured(passages: tuple[Passage, ...] = RISING, **more: Any) -> Any:
    return lambda text: CapturedPassages(passages, "lineage", **more)


def test_options_win_over_fields_and_fields_over_the_generator() -> None:
    model = Model(RecordingGenerator(), max_tokens=7, stop="END", alpha=0.1, split="off")
    plain = model.focus_call("x", {}, captured())
    changed = model.focus_call(
        "x", {"max_new_tokens": 9, "stop": [], "alpha": 0.2, "split": ScoreSplit(tau=0.2), "seed": None}, captured()
    )
    assert plain.request.settings == GenerationSettings(max_new_tokens=7, stop=("END",))
    assert changed.request.settings == GenerationSettings(max_new_tokens=9)
    assert (plain.request.alpha, changed.request.alpha) == (0.1, 0.2)
    assert (plain.request.split, changed.request.split) == ("off", ScoreSplit(tau=0.2))


def test_what_was_retrieved_for_goes_with_the_passages() -> None:
    model = Model(RecordingGenerator())
    assert model.focus_call("x", {}, captured(query="When was it built?")).request.query == "When was it built?"
    assert (
        model.focus_call("x", {"query": "Who built it?"}, captured(query="When was it built?")).request.query
        == "Who built it?"
    )
    assert (
        model.focus_call("x", {"passages": ["a", "b"], "query": "Who?"}, captured(query="When?")).request.query
        == "Who?"
    )
    assert model.focus_call("x", {"passages": ["a", "b"]}, captured(query="When?")).request.query is None
    with pytest.raises(InvalidInputError, match="query must be a string"):
        model.focus_call("x", {"query": 3}, captured())


def test_what_the_scores_are_said_to_be_wins_over_their_order() -> None:
    model = Model(RecordingGenerator())
    for kind in ("cosine", "l2"):
        request = model.focus_call("x", {"score_kind": kind}, captured(higher_is_better=False)).request
        assert (request.score_kind, request.higher_is_better) == (kind, None)
    assert model.focus_call("x", {}, captured(higher_is_better=False)).request.higher_is_better is False


@pytest.mark.parametrize("settings", [{"noise": 5}, {"alpha": True}, {"alpha": float("nan")}, {"alpha": float("inf")}])
def test_settings_that_no_call_could_use_are_told_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises((InvalidInputError, ValidationError), match=next(iter(settings))):
        Model(RecordingGenerator(), **settings)


def test_a_name_is_no_generator_and_a_loaded_one_is_not_pickled() -> None:
    with pytest.raises(InvalidInputError, match="say model='some/model'"):
        Model("some/model")
    model = Model(RecordingGenerator())
    with pytest.raises(InvalidInputError, match="cannot be pickled"):
        model.__reduce_ex__(2)
    assert model.generator.model_name == "recording"


@pytest.mark.parametrize("wrong", ["text", {"text": "a"}, 5, Passage("a")])
def test_passages_are_a_list(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="passages must be a list of passages"):
        Model(RecordingGenerator()).focus_call("x", {"passages": wrong}, captured())


def test_unknown_options_are_told() -> None:
    model = Model(RecordingGenerator())
    with pytest.raises(InvalidInputError, match="'temprature'"):
        model.focus_call("x", {"temprature": 0.5}, captured())
    with pytest.raises(InvalidInputError, match="score_kind"):
        Model(RecordingGenerator(), score_kind="stars")
    with pytest.raises(InvalidInputError, match="not both"):
        Model(RecordingGenerator(), model="some/model")


def test_a_model_is_loaded_once_and_copies_with_other_settings_load_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[tuple[Any, ...]] = []

    def load(*where: Any, **more: Any) -> RecordingGenerator:
        loads.append((*where, more))
        return RecordingGenerator()

    monkeypatch.setattr(FocusGenerator, "from_pretrained", load)
    model = Model(model="some/model", focus_profile="its/profile", model_kwargs={"dtype": "float32"}, alpha=0.1)
    assert loads == [("some/model", "its/profile", {"dtype": "float32"})]
    fields = {name: getattr(model, name) for name in type(model).model_fields}
    copy = Model(**{**fields, "alpha": 0.2})
    assert len(loads) == 1 and copy.generator is model.generator
    assert (copy.alpha, copy.model_name) == (0.2, "recording")


def test_scores_whose_way_up_nobody_knows_are_not_used() -> None:
    model = Model(RecordingGenerator())
    unknown = model.focus_call("x", {}, captured())
    assert [p.score for p in unknown.request.passages] == [None] * 3
    assert "which way up" in unknown.note and unknown.request.higher_is_better is None
    for options in ({"score_kind": "cosine"}, {"higher_is_better": True}, {"higher_is_better": False}):
        told = model.focus_call("x", options, captured())
        assert told.request.passages == RISING and told.note == ""
        assert told.request.higher_is_better is options.get("higher_is_better")
    by_order = model.focus_call("x", {"score_kind": "unknown"}, captured(higher_is_better=True))
    assert by_order.request.passages == RISING and by_order.request.higher_is_better is True


def test_passages_given_by_hand_are_taken_as_they_are() -> None:
    call = Model(RecordingGenerator()).focus_call("x", {"passages": [("A.", 0.1), ("B.", 0.9), "C."]}, captured())
    assert call.request.passages == (Passage("A.", 0.1), Passage("B.", 0.9), Passage("C."))
    assert call.found == "given"
    none = Model(RecordingGenerator(), passages=[]).focus_call("x", {}, captured())
    assert (none.request.passages, none.found) == ((), "given")


def test_what_the_model_said_earlier_is_not_searched_for_passages() -> None:
    searched: list[str] = []

    def capture(text: str) -> CapturedPassages:
        searched.append(text)
        return CapturedPassages()

    messages = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant", "user")]
    call = Model(RecordingGenerator()).focus_call(messages, {}, capture)
    assert searched == ["SYSTEM\n\nUSER\n\nUSER"]
    assert call.request.messages == messages


def test_a_prompt_without_its_passages_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(RecordingGenerator())
    with caplog.at_level(logging.WARNING, logger="focus_rag"):
        model.focus_call("x", {}, lambda _: CapturedPassages(retrieved=0))
        model.focus_call("x", {"passages": []}, lambda _: CapturedPassages(retrieved=3))
        assert caplog.records == []
        for _ in range(2):
            model.focus_call("x", {}, lambda _: CapturedPassages(retrieved=3))
    assert len(caplog.records) == 1 and "3 passages were retrieved" in caplog.text
