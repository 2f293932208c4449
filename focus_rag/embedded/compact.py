"""A model at half its size: matrices in eight bits with one scale per row, and back.

    python -m focus_rag.embedded.compact --model runs/reader/model --out runs/reader-int8
    python -m focus_rag.embedded.compact --expand --model runs/reader-int8 --out runs/reader/model

The small form is for carrying and publishing (`models/`); what transformers loads and the training resumes from is the
expanded one.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from focus_rag.embedded.reader_model import saved_tensors
from focus_rag.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

_SCALE = ".scale"
_LARGEST_FILE = 15_000_000


def quantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices `(rows, columns)` as int8 and float32 scales `(rows, 1)`: symmetric, the row's largest entry is 127."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for name, one in tensors.items():
        if one.ndim != 2:
            found[name] = one
            continue
        scale = one.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        found[name] = (one.float() / scale).round().to(torch.int8)
        found[name + _SCALE] = scale
    return found


def dequantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `quantised` made, in bfloat16."""
    import torch

    return {
        name: (one.float() * tensors[name + _SCALE] if name + _SCALE in tensors else one).to(torch.bfloat16)
        for name, one in tensors.items()
        if not name.endswith(_SCALE)
    }


def compact(model: Path, out: Path) -> int:
    """Write a saved model in the small form, in files under 15 MB; returns the bytes of the folder.

    Raises:
        InvalidInputError: There is no saved model, it is in the small form already, or `out` exists.
    """
    from safetensors.torch import save_file

    saved = saved_tensors(model)
    if any(name.endswith(_SCALE) for name in saved):
        raise InvalidInputError(
            f"{model} is in the small form already: give a model that transformers loads, or copy the folder as it is."
        )
    files: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, one in quantised(saved).items():
        if size + one.nbytes > _LARGEST_FILE and files[-1]:
            files.append({})
            size = 0
        files[-1][name] = one.contiguous()
        size += one.nbytes
    _start(model, out)
    for number, tensors in enumerate(files, start=1):
        save_file(tensors, out / f"int8-{number}.safetensors")
    return sum(path.stat().st_size for path in out.iterdir())


def expand(folder: Path, out: Path) -> None:
    """Write the small form as a model that transformers loads.

    Raises:
        InvalidInputError: There is no small form, or `out` exists.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, LlamaForCausalLM

    weights = dequantised(saved_tensors(folder))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{folder} is no compact model: it lacks a config.json that transformers understands."
        ) from error
    with torch.device("meta"):
        named = dict(LlamaForCausalLM(config).named_parameters())  # the tied head once
    wrong = [
        name
        for name in {**named, **weights}
        if name not in named or name not in weights or weights[name].shape != named[name].shape
    ]
    if wrong:
        raise InvalidInputError(
            f"{folder} is no compact model: {', '.join(wrong[:5])} is not what its configuration says."
        )
    _start(folder, out)
    save_file(weights, out / "model.safetensors", {"format": "pt"})


def _start(source: Path, out: Path) -> None:
    """A new folder with everything but the weights."""
    if out.exists():
        raise InvalidInputError(f"{out} exists already: give a folder that does not.")
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise InvalidInputError(f"The folder {out} cannot be made ({error.strerror}): give another place.") from error
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copy(file, out / file.name)


def main(arguments: list[str] | None = None) -> None:
    """Command line of both directions."""
    parser = argparse.ArgumentParser(
        prog="python -m focus_rag.embedded.compact", description="A saved model in eight bits, and back."
    )
    parser.add_argument("--model", type=Path, required=True, help="folder to read")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--expand", action="store_true", help="from eight bits to a model that transformers loads")
    given = parser.parse_args(arguments)
    try:
        if given.expand:
            expand(given.model, given.out)
        else:
            compact(given.model, given.out)
    except InvalidInputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
