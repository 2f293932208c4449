"""The small model that comes with the package, its training recipe, its data and demo documents."""

from __future__ import annotations

from pathlib import Path

from focus_rag.errors import InvalidInputError

_HERE = Path(__file__).parent


def embedded_model_folder() -> Path:
    """Folder of the embedded model, as `AutoModelForCausalLM.from_pretrained` takes it.

    The package holds the weights in eight bits; they are expanded into the user's cache folder the first time they are asked for.

    Raises:
        InvalidInputError: The weights are not installed, or the cache folder cannot be written.
    """
    folder = packaged_model_folder()
    if not any(folder.glob("*.safetensors")):
        raise InvalidInputError(f"The embedded model is missing from {folder}: reinstall focus_rag.")
    from platformdirs import user_cache_dir

    from focus_rag.embedded.compact import expanded_once

    return expanded_once(folder, Path(user_cache_dir("focus_rag")) / "reader")


def packaged_model_folder() -> Path:
    """Folder of the embedded model in the package: weights in eight bits (`compact`), tokenizer and configuration."""
    return _HERE / "model"


def embedded_profile_folder() -> Path:
    """Folder of the embedded model's focus profile; it may not exist before `focus-rag fit` has written it."""
    return _HERE / "profile"


def demo_folder() -> Path:
    """Folder of the demo documents: one Markdown file each, and `questions.jsonl`."""
    return _HERE / "demo"
