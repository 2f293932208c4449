"""The small model that comes with the package, its training recipe, its data and demo documents."""

from __future__ import annotations

from pathlib import Path

from focus_rag.errors import InvalidInputError

_HERE = Path(__file__).parent


def embedded_model_folder() -> Path:
    """Folder of the embedded model, as `AutoModelForCausalLM.from_pretrained` takes it.

    Raises:
        InvalidInputError: The weights are not installed.
    """
    folder = _HERE / "model"
    if not (folder / "model.safetensors").is_file():
        raise InvalidInputError(
            f"The embedded model is missing from {folder}: reinstall focus_rag, or name a model of your own."
        )
    return folder


def embedded_profile_folder() -> Path:
    """Folder of the embedded model's focus profile; it may not exist before `focus-rag fit` has written it."""
    return _HERE / "profile"


def demo_folder() -> Path:
    """Folder of the demo documents: one Markdown file each, and `questions.jsonl`."""
    return _HERE / "demo"
