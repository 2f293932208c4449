"""Results of the steps of a fit, stored one by one, so that a killed fit goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

import focus_rag
from focus_rag.errors import InvalidInputError
from focus_rag.examples import Example
from focus_rag.fingerprint import Fingerprint
from focus_rag.fitting.settings import FitSettings
from focus_rag.profile import FocusProfile
from focus_rag.weights_digest import own_generation, weights_digest
from focus_rag.whole_files import write_whole


class FitSteps:
    """Results of finished steps, one JSON file each, in a folder of one model, example set and settings."""

    def __init__(self, out: Path, digest: str) -> None:
        if out.is_file():
            raise InvalidInputError(f"{out} is a file; a profile is a folder. Choose another place.")
        self.folder = out / f".fit-{digest}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"Nothing can be written to {out}: {error.strerror or error}.") from error

    def step(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of a step: read if it is there, else computed and stored whole or not at all."""
        file = self.folder / f"{name}.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        text = json.dumps(compute())
        write_whole(file, text)
        return json.loads(text)

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)  # another run of the same fit may have been faster


def fit_digest(
    model: nn.Module,
    tokenizer: Any,
    fingerprint: Fingerprint,
    examples: Sequence[Example],
    settings: FitSettings,
    directions_of: FocusProfile | None = None,
) -> str:
    """Name of all that a fit depends on: the version of this library, weights (sampled) and their dtype, tokenizer and
    chat template, the model's own generation settings, examples, settings, and the profile whose directions it takes.
    """
    found = hashlib.sha256(focus_rag.__version__.encode())
    found.update(fingerprint.model_dump_json().encode())
    found.update(settings.model_dump_json(exclude={"keep_work"}).encode())
    for example in sorted(examples, key=lambda one: one.key):
        what = (
            example.question,
            example.answers,
            example.passages,
            sorted(example.gold),
            *([example.score_kind] if example.score_kind else []),
        )
        found.update(repr(what).encode("utf-8", "replace"))
    dtype = str(next(model.parameters()).dtype)
    template = str(getattr(tokenizer, "chat_template", None))  # the vocabulary is in the fingerprint
    for part in (weights_digest(model), dtype, template, json.dumps(own_generation(model))):
        found.update(part.encode())
    if directions_of is not None:
        found.update(directions_of.digest.encode())
    return found.hexdigest()[:16]
