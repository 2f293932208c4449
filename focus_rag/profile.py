"""FocusProfile: which heads to steer, in which direction, how hard, for which model, and how that was found."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from focus_rag.alpha import AlphaPolicy, RetrievalAlpha
from focus_rag.confidence import Confidence
from focus_rag.errors import InvalidInputError, ProfileError, ProfileMismatchError, first_problem
from focus_rag.fingerprint import Fingerprint, refuse_baked
from focus_rag.model_layout import Site
from focus_rag.prompt_layout import PromptLayout
from focus_rag.published_files import published_directions
from focus_rag.score_split import ScoreSplit

if TYPE_CHECKING:
    from torch import nn

MANIFEST = "focus_profile.json"
TENSORS = "directions.safetensors"


class HeadEntry(BaseModel):
    """A contextual head.

    Attributes:
        layer: Layer index.
        head: Query head index within the layer.
        score: Contextual score (probability mass on the gold passage), if it was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(ge=0)
    head: int = Field(ge=0)
    score: float | None = None


class _Manifest(BaseModel):
    """The JSON half of a profile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    fingerprint: Fingerprint
    site: Site
    passages_at: int | None = Field(default=None, ge=0, lt=2**31)
    heads: tuple[HeadEntry, ...] = Field(min_length=1)
    policy: AlphaPolicy = Field(default_factory=RetrievalAlpha)
    split: ScoreSplit | None = None
    confidence: Confidence | None = None
    layout: PromptLayout | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    report: dict[str, Any] = Field(default_factory=dict)
    tensors: str | None = None
    """Digest of the other half: of two files that were not written together one is found out."""


class FocusProfile:
    """Contextual heads of one model, their focus directions, and how much of either a request gets. Never changed in
    place.

    Attributes:
        fingerprint: The model it belongs to.
        site: Where the directions were trained and must be applied.
        passages_at: Position of the first token of the first passage in the prompts that the directions were trained
            on; None where that is not known.
        heads: Contextual heads, best first.
        directions: `(heads, head_dim)` float32 query directions in the order of `heads`; before RoPE unless the site is
            `post_rope`.
        key_directions: `(heads, head_dim)`, kept from published files for fidelity and never applied: the same vector
            added to every key adds one constant to a row of logits, which softmax removes.
        policy: From the retrieval to alpha.
        split: How far to lean on the best scored passages where scores tell them apart; None leaves that out.
        confidence: How likely an answer is right, from what speaks for it; None where that was not fitted.
        layout: How question and passages were laid out where it was fitted, options of the chat template among it; None
            where that is not known.
        provenance: How it was made.
        report: Figures of its training and evaluation.
    """

    def __init__(
        self,
        fingerprint: Fingerprint,
        heads: Sequence[HeadEntry],
        directions: Tensor,
        *,
        site: Site,
        passages_at: int | None = None,
        policy: AlphaPolicy | None = None,
        split: ScoreSplit | None = None,
        confidence: Confidence | None = None,
        layout: PromptLayout | None = None,
        key_directions: Tensor | None = None,
        provenance: Mapping[str, Any] | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        self.directions = _checked(directions, len(heads), fingerprint.head_dim, "directions")
        self.key_directions = (
            None
            if key_directions is None
            else _checked(key_directions, len(heads), fingerprint.head_dim, "key_directions")
        )
        try:
            self._manifest = _Manifest(
                tensors=_tensors_digest(self.directions, self.key_directions),
                fingerprint=fingerprint,
                site=site,
                passages_at=passages_at,
                heads=tuple(heads),
                policy=policy or RetrievalAlpha(),
                split=split,
                confidence=confidence,
                layout=layout,
                provenance=dict(provenance or {}),
                report=dict(report or {}),
            )
        except ValidationError as error:
            raise ProfileError(f"The profile is not valid: {error}") from error
        _check_heads(self.heads, fingerprint)

    @property
    def fingerprint(self) -> Fingerprint:
        return self._manifest.fingerprint

    @property
    def site(self) -> Site:
        return self._manifest.site

    @property
    def passages_at(self) -> int | None:
        return self._manifest.passages_at

    @property
    def heads(self) -> tuple[HeadEntry, ...]:
        return self._manifest.heads

    @property
    def head_pairs(self) -> list[tuple[int, int]]:
        """The contextual heads as `(layer, head)` pairs."""
        return [(entry.layer, entry.head) for entry in self.heads]

    @property
    def policy(self) -> AlphaPolicy:
        return self._manifest.policy

    @property
    def split(self) -> ScoreSplit | None:
        return self._manifest.split

    @property
    def confidence(self) -> Confidence | None:
        return self._manifest.confidence

    @property
    def layout(self) -> PromptLayout | None:
        return self._manifest.layout

    @property
    def provenance(self) -> dict[str, Any]:
        return self._manifest.provenance

    @property
    def report(self) -> dict[str, Any]:
        return self._manifest.report

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell this profile from any other one, down to its report."""
        manifest = json.dumps(self._manifest.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(manifest.encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"FocusProfile({self.fingerprint.model_id!r}, heads={len(self.heads)}, site={self.site!r})"

    def replace(self, **changes: Any) -> FocusProfile:
        """A copy with some of the constructor's arguments changed."""
        current: dict[str, Any] = {
            "fingerprint": self.fingerprint, "heads": self.heads, "directions": self.directions, "site": self.site,
            "passages_at": self.passages_at, "policy": self.policy, "split": self.split,
            "confidence": self.confidence, "layout": self.layout, "key_directions": self.key_directions,
            "provenance": self.provenance, "report": self.report,
        }  # fmt: skip
        return FocusProfile(**{**current, **changes})

    def top(self, k: int) -> FocusProfile:
        """The same profile with its k best heads only.

        Raises:
            InvalidInputError: k is no whole number from 1 to the number of heads.
        """
        if not isinstance(k, int) or not 1 <= k <= len(self.heads):
            raise InvalidInputError(
                f"top_k must be a whole number between 1 and {len(self.heads)}, the heads of this profile; got {k}."
            )
        keys = self.key_directions
        return self.replace(
            heads=self.heads[:k], directions=self.directions[:k], key_directions=None if keys is None else keys[:k]
        )

    def check(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Refuse a model that does not match.

        Raises:
            ProfileMismatchError: Naming every difference; or the model is a checkpoint that has its focus baked in, see
                `export_model`.
            UnsupportedModelError: The model cannot be steered at all.
        """
        refuse_baked(model)
        found = self.fingerprint.mismatches(Fingerprint.of(model, tokenizer))
        if found:
            raise ProfileMismatchError(
                f"This profile was made for {self.fingerprint.model_id!r} and does not match the model: "
                f"{'; '.join(found)}. Load the model it was made for, or fit a profile for this one."
            )

    def save(self, folder: str | Path) -> Path:
        """Write the profile; a profile already there is replaced only once the new one is complete.

        Raises:
            ProfileError: `folder` is a file, or cannot be written to.
        """
        folder = Path(folder)
        if folder.is_file():
            raise ProfileError(f"{folder} is a file; a profile is a folder. Choose another place.")
        tensors = {"query_directions": self.directions}
        if self.key_directions is not None:
            tensors["key_directions"] = self.key_directions
        try:
            text = json.dumps(self._manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
        except (PydanticSerializationError, TypeError, ValueError) as error:
            raise ProfileError(f"Provenance and report must hold plain JSON values: {error}") from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
                Path(temporary, TENSORS).write_bytes(save(tensors))  # with the permissions of any other file
                Path(temporary, MANIFEST).write_text(text, encoding="utf-8")
                for name in (TENSORS, MANIFEST):
                    shutil.move(str(Path(temporary, name)), str(folder / name))
        except (OSError, SafetensorError) as error:
            raise ProfileError(
                f"The profile cannot be written to {folder}: {getattr(error, 'strerror', None) or error}."
            ) from error
        return folder

    @classmethod
    def load(cls, source: str | Path, *, revision: str | None = None) -> FocusProfile:
        """Read a profile from a folder, or from the Hub if no such folder exists and `source` reads like `owner/name`.

        Raises:
            ProfileError: Nothing there, or not a profile.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = _from_hub(str(source), revision)
        manifest_file, tensor_file = folder / MANIFEST, folder / TENSORS
        if not manifest_file.is_file() or not tensor_file.is_file():
            raise ProfileError(f"{folder} is not a profile: {MANIFEST} and {TENSORS} were expected in it.")
        try:
            manifest = _Manifest.model_validate_json(manifest_file.read_text(encoding="utf-8"))
            tensors = load_file(tensor_file)
        except ValidationError as error:
            problem = first_problem(error.errors())
            raise ProfileError(f"{folder} holds a profile that cannot be read: {problem}.") from error
        except (SafetensorError, UnicodeDecodeError, OSError) as error:
            raise ProfileError(f"{folder} holds a profile that cannot be read: {error}") from error
        if "query_directions" not in tensors:
            raise ProfileError(f"{tensor_file} has no tensor 'query_directions'.")
        written = _tensors_digest(tensors["query_directions"], tensors.get("key_directions"))
        if manifest.tensors not in (None, written):
            raise ProfileError(
                f"{folder} holds the two halves of different profiles: saving was interrupted. Fit or import it "
                "again, or take a copy of the folder."
            )
        return cls(
            manifest.fingerprint,
            manifest.heads,
            tensors["query_directions"],
            site=manifest.site,
            passages_at=manifest.passages_at,
            policy=manifest.policy,
            split=manifest.split,
            confidence=manifest.confidence,
            layout=manifest.layout,
            key_directions=tensors.get("key_directions"),
            provenance=manifest.provenance,
            report=manifest.report,
        )

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the profile to the Hugging Face Hub and return its address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=[MANIFEST, TENSORS]))

    @classmethod
    def from_published(cls, folder: str | Path, *, model: str, top_k: int = 20) -> FocusProfile:
        """Import directions published with the paper.

        Args:
            folder: The folder that holds `head_features/` and `contextual_heads_scores_full_seq/`.
            model: Hub id, e.g. `meta-llama/Llama-3.2-3B-Instruct`.
            top_k: How many of the best contextual heads to keep (the paper's scripts use 20).

        Returns:
            A profile at site `post_rope` with query and key directions.

        Raises:
            ProfileError: Files are missing or do not fit together.
        """
        published = published_directions(folder, model)
        layers, query_heads, head_dim = published.queries.shape
        if not 1 <= top_k <= len(published.ranking):
            raise ProfileError(
                f"top_k must lie between 1 and {len(published.ranking)}, the ranked heads of {model!r}; got {top_k}."
            )
        chosen = published.ranking[:top_k]
        of_layers, of_heads = [layer for layer, _ in chosen], [head for _, head in chosen]
        return cls(
            Fingerprint(model_id=model, layers=layers, query_heads=query_heads, head_dim=head_dim),
            [HeadEntry(layer=layer, head=head) for layer, head in chosen],
            published.queries[of_layers, of_heads],
            site="post_rope",
            key_directions=published.keys[of_layers, of_heads],
            provenance={
                "source": "published with arXiv 2503.23306",
                "licence": "MIT",
                "heads_ranked": len(published.ranking),
            },
        )


def _tensors_digest(directions: Tensor, key_directions: Tensor | None) -> str:
    found = hashlib.sha256()
    for tensor in (directions, key_directions):
        found.update(b"none" if tensor is None else tensor.contiguous().float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _checked(tensor: Tensor, heads: int, head_dim: int, name: str) -> Tensor:
    if tuple(tensor.shape) != (heads, head_dim):
        raise ProfileError(f"{name} must be (heads, head_dim) = ({heads}, {head_dim}); got {tuple(tensor.shape)}.")
    tensor = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    if not torch.isfinite(tensor).all():
        raise ProfileError(f"{name} holds NaN or infinite values.")
    return tensor


def _check_heads(heads: Sequence[HeadEntry], fingerprint: Fingerprint) -> None:
    seen = {(entry.layer, entry.head) for entry in heads}
    if len(seen) != len(heads):
        raise ProfileError("A head stands in the profile twice.")
    outside = [(layer, head) for layer, head in seen if layer >= fingerprint.layers or head >= fingerprint.query_heads]
    if outside:
        raise ProfileError(
            f"Heads {sorted(outside)} lie outside a model of {fingerprint.layers} layers and "
            f"{fingerprint.query_heads} heads."
        )


def _from_hub(repo_id: str, revision: str | None) -> Path:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id):
        raise ProfileError(f"No profile at {repo_id!r}: neither a folder nor a Hub id (owner/name).")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[MANIFEST, TENSORS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ProfileError(
            f"No profile at {repo_id!r}: no such folder, and the Hub did not give one ({type(error).__name__})."
        ) from error
