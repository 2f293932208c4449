"""Values on the command lines of training and data commands, refused before anything is begun.

Each function is the `type` of an argument: argparse makes one line of what it raises.
"""

from __future__ import annotations

import math
import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

_LARGEST = 2**63 - 1


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0.0 < found < math.inf:
        raise ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return found


def whole_number(lowest: int) -> Callable[[str], int]:
    """A whole number from `lowest` on."""

    def parse(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = lowest - 1
        if not lowest <= found <= _LARGEST:
            raise ArgumentTypeError(f"expected a whole number from {lowest} on, got {text!r}")
        return found

    return parse


def folder(text: str) -> Path:
    """A folder to write to, there already or to be made."""
    path = Path(text)
    nearest = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not _is_open(nearest):
        raise ArgumentTypeError(f"expected a folder or a place for one, got {text!r}: {nearest} cannot be written into")
    return path


def new_file(text: str) -> Path:
    """A file to write, in a folder that is there."""
    path = Path(text)
    if path.is_dir() or not _is_open(path.absolute().parent):
        raise ArgumentTypeError(f"expected a file to write, in a folder that is there, got {text!r}")
    return path


def _is_open(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.W_OK)


def device(text: str) -> str:
    """A device that torch can compute on here."""
    import torch

    try:
        if torch.device(text).type == "meta":
            raise RuntimeError("it holds no weights")
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError, ImportError) as error:  # torch without CUDA asserts that it has it
        raise ArgumentTypeError(
            f"{text!r} cannot be used here ({str(error).splitlines()[0]}); cpu always can"
        ) from error
    return text
