"""What a model must have in common with the one that a profile was made for."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from focus_rag.errors import ProfileMismatchError
from focus_rag.model_layout import ModelLayout

if TYPE_CHECKING:
    from torch import nn

BAKED = "focus_rag_baked"
"""In a model's configuration: which focus its weights hold already, see `export_model`."""


def refuse_baked(model: nn.Module) -> None:
    """Refuse a checkpoint that has its focus baked in: what acts on it as well would act on top of that.

    Raises:
        ProfileMismatchError: It is one.
    """
    baked = getattr(getattr(model, "config", None), BAKED, None)
    if baked is not None:
        raise ProfileMismatchError(
            f"This checkpoint has focus directions baked in ({baked}), and more would act on top of them. Use it "
            "without a profile; steer, and fit, the model that it was exported from."
        )


class Fingerprint(BaseModel):
    """What a model must have in common with the one a profile was made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str
    family: str | None = None
    layers: int = Field(gt=0)
    query_heads: int = Field(gt=0)
    key_heads: int | None = Field(default=None, gt=0)
    head_dim: int = Field(gt=0)
    rope: str | None = None
    tokenizer: str | None = None

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any = None, *, model_id: str | None = None) -> Fingerprint:
        """Read a model's fingerprint."""
        layout = ModelLayout.of(model)
        config: Any = model.config
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        return cls(
            model_id=model_id or str(getattr(config, "_name_or_path", "") or type(model).__name__),
            family=layout.family,
            layers=len(layout.layers),
            query_heads=layout.query_heads,
            key_heads=layout.key_heads,
            head_dim=layout.head_dim,
            rope=_rope_of(text_config),
            tokenizer=vocabulary_digest(tokenizer) if tokenizer is not None else None,
        )

    def mismatches(self, other: Fingerprint) -> list[str]:
        """Fields known on both sides that differ, in words. The id is a name, not a property, and is left out."""
        found = []
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name == "model_id" or mine is None or theirs is None or mine == theirs:
                continue
            if name != "rope" or not _is_same_rope(mine, theirs):
                found.append(f"{name}: profile {mine}, model {theirs}")
        return found


def _rope_of(config: Any) -> str | None:
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if parameters is None:
        theta = getattr(config, "rope_theta", None)
        return None if theta is None else json.dumps({"rope_theta": theta})
    return json.dumps(parameters, sort_keys=True, default=str)


def _is_same_rope(one: str, other: str) -> bool:
    """Whether two descriptions say the same: files write 10000 and 10000.0."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def vocabulary_digest(tokenizer: Any) -> str:
    """Sixteen hexadecimal digits that tell a tokenizer's tokens and their ids from others."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]
