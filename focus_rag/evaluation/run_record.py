"""What a run was done with, and that a folder goes on only with the run it was begun with."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from focus_rag import __version__
from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.cases import Case, CaseSource
from focus_rag.evaluation.questions import Plan
from focus_rag.evaluation.settings import EvalSettings
from focus_rag.generator import FocusGenerator
from focus_rag.weights_digest import own_generation, weights_digest
from focus_rag.whole_files import write_whole

RUN, ANSWERS, SPEED = "run.json", "answers.jsonl", "speed.json"


def described(
    generator: FocusGenerator,
    source: CaseSource,
    dev: CaseSource | None,
    settings: EvalSettings,
    plan: Plan,
    dev_cases: Sequence[Case],
    screened: Mapping[str, int],
) -> dict[str, Any]:
    """What the answers depend on, and what else a reader needs to repeat the run."""
    profile = generator.profile
    left_out: Mapping[str, Sequence[str]] = getattr(source, "skipped", {})
    return {
        "model": generator.model_name,
        "profile": None
        if profile is None
        else {
            "digest": profile.digest,
            "heads": [[entry.layer, entry.head, entry.score] for entry in profile.heads],
            "site": profile.site,
            "passages_at": profile.passages_at,
            "policy": profile.policy.model_dump(mode="json"),
            "split": None if profile.split is None else profile.split.model_dump(mode="json"),
            "confidence": None if profile.confidence is None else profile.confidence.model_dump(mode="json"),
        },
        "data": source.name,
        "left_out": {reason: len(places) for reason, places in left_out.items()} | dict(screened),
        "dev_data": dev.name if dev is not None and dev_cases else None,
        "settings": settings.model_dump(mode="json"),
        "grading": settings.grading_of(profile),
        "dtype": str(next(generator.model.parameters()).dtype),
        "weights": weights_digest(generator.model),
        "tokenizer": _prompt_hash(generator.tokenizer),
        "generation": own_generation(generator.model),
        "layout": generator.prompts.layout.model_dump(mode="json"),
        "window": generator.context_window,
        "questions": _questions_hash([*plan.cases.values(), dev_cases]),
        "versions": {
            "focus_rag": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "rouge-score": _version("rouge-score"),
        },
    }


def _prompt_hash(tokenizer: Any) -> str:
    """Of the vocabulary and of the chat template: both decide what the model is shown."""
    whole = [sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]


def _questions_hash(groups: Sequence[Sequence[Case]]) -> str:
    digest = hashlib.sha256()
    for cases in groups:
        for case in cases:
            one = case.example
            whole = (
                case.id,
                one.question,
                one.answers,
                one.passages,
                sorted(one.gold),
                one.score_kind,
                case.wrong_answers,
            )
            digest.update(repr(whole).encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def claim(file: Path, run: dict[str, Any]) -> None:
    """Write what the run is, or check that the folder's is the same one.

    Raises:
        InvalidInputError: It is another one, or the folder holds results of which nothing says what they are of.
    """
    text = json.dumps(run, indent=2, sort_keys=True) + "\n"
    if file.exists():
        known = read_object(file)
        differing = sorted(name for name in {*known, *run} if known.get(name) != json.loads(text).get(name))
        if differing:
            raise InvalidInputError(
                f"{file.parent} holds a run that differs in {', '.join(differing)}; give another folder, or delete it."
            )
        return
    results = [name for name in (ANSWERS, SPEED) if (file.parent / name).exists()]
    if results:
        raise InvalidInputError(
            f"{file.parent} holds {' and '.join(results)} without the {file.name} that says of which model and "
            f"questions; delete {'it' if len(results) == 1 else 'them'}, or give another folder."
        )
    write_whole(file, text)


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object that an earlier run wrote.

    Raises:
        InvalidInputError: It is something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        which = f"it, {ANSWERS} and {SPEED}" if file.name == RUN else "it"
        raise InvalidInputError(f"{file} is damaged ({error}); delete {which}, or give another folder.") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{file} is not of an evaluation; give another folder.")
    return found
