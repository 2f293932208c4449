"""Recorded examples as chosen heads see them, in memory as far as they fit and on disk beyond that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """One example as the chosen heads see it; heads in the order of the recording.

    Attributes:
        queries: `(heads, rows, head_dim)`, after RoPE, unshifted.
        keys: `(key heads read, keys, head_dim)`, after RoPE.
        visible: `(layers, rows, keys)` boolean.
        before: `(layers, query_heads, rows, head_dim)` at site `projection` under a query norm, else None.
        cos: `(layers, rows, rotary_dim)`, or None at site `post_rope`.
        sin: Like `cos`.
        gold: `(keys,)` boolean.
        passages: `(keys,)` boolean: gold and other passages.
    """

    queries: Tensor
    keys: Tensor
    visible: Tensor
    before: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    gold: Tensor
    passages: Tensor

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}

    def save(self, file: Path) -> None:
        """Write to a safetensors file."""
        save_file(self._tensors(), file)

    @classmethod
    def load(cls, file: Path) -> HeadInputs:
        """Read what `save` wrote."""
        tensors = load_file(file)
        return cls(**{field.name: tensors.get(field.name) for field in fields(cls)})  # type: ignore[arg-type]


class ExampleStore:
    """A list of recorded examples that spills to a temporary folder once it outgrows the memory it may take.

    Args:
        memory_mb: Megabytes kept in memory.
    """

    def __init__(self, memory_mb: float = 2048) -> None:
        self._limit = int(memory_mb * 2**20)
        self._places: list[HeadInputs | Path] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.in_memory = 0

    def append(self, example: HeadInputs) -> None:
        """Add an example."""
        size = example.nbytes
        if self.in_memory + size <= self._limit:
            self.in_memory += size
            self._places.append(example)
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="focus-rag-recording-")
        file = Path(self._folder.name) / f"{len(self._places)}.safetensors"
        example.save(file)
        self._places.append(file)

    @property
    def has_spilled(self) -> bool:
        """Whether some examples are on disk."""
        return self._folder is not None

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> HeadInputs:
        place = self._places[index]
        return HeadInputs.load(place) if isinstance(place, Path) else place

    def __iter__(self) -> Iterator[HeadInputs]:
        return (self[index] for index in range(len(self)))
