"""Baked checkpoints: focus directions at one alpha as a bias of the query projections, for engines that run without
this library.

A shift at the output of the query projection is the same for every token, before RoPE and before any query norm: it is
a bias, exactly. After RoPE it would turn with the position, and behind a norm it is not what enters the norm: those
cannot be baked.

What a baked model has lost: one alpha serves everything, passages or none; nothing follows the retrieval any more,
neither alpha nor a split. A profile is not attached to it: that would shift its queries a second time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from focus_rag import __version__
from focus_rag.attention.steering import focus
from focus_rag.attention.tap import undisturbed
from focus_rag.baking import baked_model
from focus_rag.errors import InvalidInputError, ProfileError, UnsupportedModelError
from focus_rag.model_layout import ModelLayout, config_with_query_bias
from focus_rag.probing import input_device
from focus_rag.profile import FocusProfile

EXPORT_FILE = "focus_export.json"

_PROBE = (
    "The mill by the river was built in 1882 and burnt down nine years later. The bridge beside it was opened in "
    "1910, and the school in the year after. Question: When was the mill built? Answer:"
)
_PROBE_TOKENS = 64
_TOP = 20
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""Share of the logits (root mean square) by which two ways to compute them may differ. A bias is added before the
projection's output is rounded and a hook's shift after it. Measured, on a tiny random model of each family and the
embedded reader: up to 1e-6, 4e-3 and 3e-2, and 5e-2 in bfloat16 where rounding sends tokens to other experts.
"""
_MOST_ROUNDING = 0.5
"""Share of what the directions do to the logits that rounding may make up."""
_FIT_AGAIN = (
    "Fit a profile at the projection: `focus-rag fit --site projection`, in Python FitSettings(sites=('projection',))."
)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how near it comes to the steered model.

    Attributes:
        folder: The checkpoint.
        architecture: The class that loads it.
        dtype: Of the weights.
        alpha: The intervention factor that was baked.
        site: Site of the profile.
        heads: How many heads are shifted.
        error: Largest difference between logits of the baked model and those of `focus()` on the original, on the
            probe.
        moved: Largest difference that `focus()` itself makes there.
        warnings: What the checkpoint does otherwise than the profile.
    """

    folder: Path
    architecture: str
    dtype: str
    alpha: float
    site: str
    heads: int
    error: float
    moved: float
    warnings: tuple[str, ...]


def export_model(
    model: Any, tokenizer: Any, profile: FocusProfile, folder: str | Path, *, alpha: float
) -> ExportReport:
    """Write a checkpoint that answers as the model does under `focus(model, profile, alpha)`, everywhere and always.

    The checkpoint is checked on a probe: in memory against the steered model, and once more as it is read back from the
    disk. The folder appears when it is complete; a process that is killed on the way leaves a hidden `.exporting-`
    folder beside it. The model is left as it was; its weights are not copied in memory, but reading back loads them
    once more.

    Beside the usual files, `focus_export.json` holds what was baked, and for the probe's token ids the likeliest next
    tokens with their logits. Compare them in the engine that is to serve the checkpoint: some loaders (older ones of
    vLLM) silently drop a bias that they do not expect, and the model then answers as the bare one. In the
    configuration, the biases are switched on.

    Args:
        model: A Hugging Face causal LM on one device, neither quantised nor wrapped by PEFT.
        tokenizer: Its tokenizer, written to the folder too.
        profile: A profile at site `projection`; `normed` is the same where a layer has no query norm.
        folder: Where to write; it must not exist, or be empty.
        alpha: Intervention factor, finite and not 0. It is not `"auto"`: a bias cannot follow the retrieval. For the
            same reason a profile's split is left out, with a warning in the report.

    Raises:
        InvalidInputError: alpha, the folder, the tokenizer or the state of the model cannot be used.
        ProfileError: The profile's directions cannot be a bias.
        ProfileMismatchError: The profile belongs to another model.
        UnsupportedModelError: Models of this family have no query bias, or the checkpoint does not compute what it
            should; nothing is left behind then.
    """
    folder = Path(folder).resolve()
    check_export(profile, folder, alpha)
    alpha = float(alpha)
    _refuse_changed_models(model)
    profile.check(model, tokenizer)
    _require_bakeable(ModelLayout.of(model), profile)
    config, ids = config_with_query_bias(model), _probe(model, tokenizer)
    with undisturbed(), _evaluating(model):
        bare = _logits(model, ids)
        with focus(model, profile, alpha):
            focused = _logits(model, ids)
    baked = baked_model(model, config, profile, alpha)
    logits = _logits(baked, ids)
    _check_baked(logits, focused, bare, model.dtype, alpha)
    split = profile.split
    report = ExportReport(
        folder=folder,
        architecture=type(baked).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        alpha=alpha,
        site=profile.site,
        heads=len(profile.heads),
        error=_largest(logits - focused),
        moved=_largest(focused - bare),
        warnings=()
        if split is None
        else (f"the profile's split ({split.in_words}) is left out: a checkpoint never sees the scores of passages",),
    )
    with _complete_folder(folder) as place:
        try:
            baked.save_pretrained(place)
        except ValueError as error:  # what configurations and generation settings are refused by
            raise InvalidInputError(f"transformers refuses to write the checkpoint: {error}") from error
        # Published models have generation settings that transformers reads and refuses to save: they are written as
        # they are.
        if model.generation_config is not None:
            model.generation_config.to_json_file(place / "generation_config.json")
        tokenizer.save_pretrained(place)
        record = _record(report, model, profile, ids, logits[-1])
        (place / EXPORT_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _check_written(baked, place, ids, logits)
    return report


def check_export(profile: FocusProfile, folder: Path, alpha: object) -> None:
    """Refuse what can be told to be in vain before a model is loaded.

    Raises:
        InvalidInputError: alpha is no finite number other than 0, or the folder is in use.
        ProfileError: The directions belong behind RoPE.
    """
    if not isinstance(alpha, Real) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise InvalidInputError(
            f"alpha must be a finite number, got {alpha!r}: a baked model has one alpha for everything, and cannot "
            "choose it by the retrieval."
        )
    if alpha == 0:
        raise InvalidInputError(
            "alpha 0 leaves nothing to bake: the checkpoint would be the bare model. Give another alpha."
        )
    if profile.site == "post_rope":
        raise ProfileError(
            "The directions of this profile enter after RoPE (site 'post_rope'), where no bias can put them: they "
            f"cannot be baked. {_FIT_AGAIN}"
        )
    require_empty(folder)


def require_empty(folder: Path) -> None:
    """Refuse a place that holds something.

    Raises:
        InvalidInputError: It is a file, or a folder that is not empty.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InvalidInputError(
            f"{folder} exists and is not an empty folder; nothing is overwritten. Choose another place or empty it."
        )


def _refuse_changed_models(model: Any) -> None:
    """Only weights that can be written as they are make a checkpoint."""
    from transformers import PreTrainedModel

    if isinstance(model, nn.Module) and any(
        type(module).__module__.split(".")[0] == "peft" for module in model.modules()
    ):
        raise InvalidInputError(
            "The model is wrapped by PEFT. Merge the adapter first: model = model.merge_and_unload()."
        )
    if not isinstance(model, PreTrainedModel):
        raise InvalidInputError(
            f"A causal LM of transformers was expected, got {type(model).__name__}. Pass the model itself, not "
            "compiled or wrapped."
        )
    is_quantised = getattr(model.config, "quantization_config", None) is not None
    if is_quantised or not all(one.is_floating_point() for one in model.parameters()):
        raise InvalidInputError(
            "The model is quantised. Load it in full precision, export that, and quantise the checkpoint."
        )
    devices = {str(one.device) for one in model.parameters()}
    if len(devices) > 1 or "meta" in devices:
        raise InvalidInputError(
            f"The weights are spread over {', '.join(sorted(devices))}. Load the model whole on one device, e.g. "
            "without device_map."
        )


def _require_bakeable(layout: ModelLayout, profile: FocusProfile) -> None:
    """Refuse directions behind a query norm, and models whose projection does not show the queries alone."""
    steered = [layout.layers[index] for index in sorted({head.layer for head in profile.heads})]
    if profile.site == "normed" and any(layer.normed is not layer.projection for layer in steered):
        raise ProfileError(
            f"{layout.family!r} norms its queries, and the directions of this profile enter behind that norm (site "
            f"'normed'), where no bias can put them: they cannot be baked. {_FIT_AGAIN}"
        )
    if any(layer.projection is None for layer in steered):
        raise UnsupportedModelError(
            f"In {layout.family!r} no projection shows the queries alone before RoPE, so no direction can be baked. "
            "Steer it with `focus()`."
        )


def _probe(model: Any, tokenizer: Any) -> list[int]:
    """Token ids of a short text, as many as an engine is quick to answer."""
    ids = [int(token) for token in tokenizer(_PROBE)["input_ids"][:_PROBE_TOKENS]]
    rows = model.get_input_embeddings().weight.shape[0]
    if not ids or max(ids) >= rows:
        raise InvalidInputError(
            f"The tokenizer makes token ids up to {max(ids, default=0)}, the model knows {rows}. Give the model's "
            "own tokenizer."
        )
    return ids


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside, as before afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> Tensor:
    """`(tokens, vocabulary)` float32 logits of one sequence."""
    inputs = torch.tensor([ids], device=input_device(model))
    logits: Tensor = model(input_ids=inputs, use_cache=False).logits[0]
    return logits.float().cpu()


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _check_baked(logits: Tensor, focused: Tensor, bare: Tensor, dtype: torch.dtype, alpha: float) -> None:
    """Refuse a baked model that is not the steered one, or whose difference from the bare one is lost in rounding.

    Args:
        logits: `(tokens, vocabulary)`, of the baked model.
        focused: Of the original under `focus()`.
        bare: Of the original.
        dtype: Of the weights.
        alpha: What was baked.
    """
    _check_close(logits, focused, dtype, "The baked model")
    if not (logits - focused).norm() < _MOST_ROUNDING * (bare - focused).norm():
        raise UnsupportedModelError(
            f"At alpha {alpha:g} the directions move the logits hardly more than rounding to {dtype} does, so a "
            "checkpoint would be told from the bare model by chance. Load the model in float32 (`--dtype float32`), or "
            "give an alpha further from 0."
        )


def _check_close(logits: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE[torch.float32])
    share = float((logits - expected).norm() / expected.norm())
    if not share <= tolerance:  # NaN too
        raise UnsupportedModelError(
            f"{what} does not compute what the steered model does: logits differ by {share:.2g} of their size, "
            f"{tolerance:g} is rounding. Nothing was exported. Remove the hooks of others and tie weights as the "
            "configuration says, neither of which a checkpoint can hold; or steer the model with `focus()` instead."
        )


def _record(report: ExportReport, model: Any, profile: FocusProfile, ids: list[int], last: Tensor) -> dict[str, Any]:
    """What `focus_export.json` holds; `last` are the `(vocabulary,)` logits after the probe."""
    top = last.topk(min(_TOP, len(last)))
    source = str(model.config._name_or_path)
    return {
        "schema_version": 1,
        "focus_rag": __version__,
        "model": Path(source).name if Path(source).is_dir() else source,
        **{name: value for name, value in asdict(report).items() if name not in ("folder", "heads")},
        "heads": [list(pair) for pair in profile.head_pairs],
        "profile": profile.digest,
        "probe": {
            "token_ids": ids,
            "next_tokens": [
                {"token_id": token, "logit": logit}
                for logit, token in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            ],
        },
    }


@contextmanager
def _complete_folder(folder: Path) -> Iterator[Path]:
    """A place to write to that becomes `folder` if nothing goes wrong, and is gone otherwise.

    Raises:
        InvalidInputError: It cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".exporting-") as temporary:
            place = Path(temporary, "checkpoint")
            yield place
            if folder.exists():
                folder.rmdir()  # it is empty
            os.replace(place, folder)
    except (OSError, SafetensorError) as error:
        raise InvalidInputError(
            f"The checkpoint cannot be written to {folder}: {getattr(error, 'strerror', None) or error}."
        ) from error


def _check_written(baked: Any, folder: Path, ids: list[int], logits: Tensor) -> None:
    """Load a written checkpoint as anybody would: its tensors must be those in memory to the bit, its logits up to
    rounding.

    Logits are not held to the bit, for kernels may round by where in memory a tensor begins.
    """
    from transformers import AutoModelForCausalLM

    device, implementation = input_device(baked), baked.config._attn_implementation
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", attn_implementation=implementation, local_files_only=True
        )
    except Exception as error:  # a wrong checkpoint fails in whatever way it meets first
        raise UnsupportedModelError(
            f"The checkpoint of {type(baked).__name__} cannot be loaded again, and nothing was exported: {error}"
        ) from error
    loaded.to(device).eval()
    written = {**dict(loaded.named_buffers()), **loaded.state_dict()}
    for name, tensor in {**dict(baked.named_buffers()), **baked.state_dict()}.items():
        if name not in written or not torch.equal(written[name], tensor) or written[name].dtype != tensor.dtype:
            raise UnsupportedModelError(
                f"{name!r} of {type(baked).__name__} is not read back as it was written; nothing was exported."
            )
    _check_close(_logits(loaded, ids), logits, baked.dtype, "The checkpoint as it is read back")
