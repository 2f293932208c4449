"""The data pack: everything the training reads, tokenised, in one small folder.

`pack.npz` holds the arrays, `pack.json` says what they were made from, `tokenizer.json` is the tokenizer, and
`held_out.jsonl.gz` has questions on held-out articles to fit a profile on.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focus_rag.embedded.tokenizer import load_tokenizer
from focus_rag.errors import InvalidInputError
from focus_rag.whole_files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from transformers import PreTrainedTokenizerFast

    Array = np.ndarray[Any, np.dtype[Any]]

LARGEST_BYTES = 64 * 2**20
"""A pack has to fit what is carried to a GPU machine in one go."""


@dataclass(frozen=True)
class Ragged:
    """Lists of different length, end to end.

    Attributes:
        values: All entries.
        ends: `(lists + 1)` where each list begins; the last entry is the end.
    """

    values: Array
    ends: Array

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]], dtype: str) -> Ragged:
        """Join lists of whole numbers."""
        import numpy as np

        lengths, parts = [0], []
        for one in lists:
            parts.append(np.asarray(one, dtype=dtype))
            lengths.append(len(one))
        values = np.concatenate(parts) if parts else np.empty(0, dtype=dtype)
        return cls(values, np.cumsum(lengths).astype("uint32"))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Array:
        return self.values[int(self.ends[index]) : int(self.ends[index + 1])]


@dataclass(frozen=True)
class Pack:
    """Tokenised training data.

    Attributes:
        texts: Token ids of every paragraph, without its title.
        titles: Token ids of every title with its colon; the first is empty.
        title_of: `(texts)` index of each paragraph's title.
        held_texts: `(texts)` whether a paragraph is kept out of the training.
        sentences: For every paragraph the token at which each of its sentences begins.
        fillings: For every paragraph the token ranges of names and numbers, `start, end, start, end, ...`.
        questions: Token ids of every question.
        answers: Token ids of its answer.
        gold: `(questions)` index of the paragraph that answers it.
        hard: For every question, paragraphs that a retriever ranks high and that hold no answer.
        source: `(questions)` index in `about["sources"]`.
        held_questions: `(questions)` whether a question is kept out of the training.
        tokenizer: What the token ids belong to.
        about: What the pack was made from, with counts.
    """

    texts: Ragged
    titles: Ragged
    title_of: Array
    held_texts: Array
    sentences: Ragged
    fillings: Ragged
    questions: Ragged
    answers: Ragged
    gold: Array
    hard: Ragged
    source: Array
    held_questions: Array
    tokenizer: PreTrainedTokenizerFast
    about: dict[str, Any]

    @cached_property
    def texts_titled(self) -> dict[int, list[int]]:
        """Paragraphs by title, in the order of the article."""
        found: dict[int, list[int]] = {}
        for text, title in enumerate(self.title_of.tolist()):
            found.setdefault(title, []).append(text)
        return found

    @property
    def digest(self) -> str:
        """Tells packs apart: a resumed run has to see the same one."""
        return str(self.about["sha256"])

    def save(self, folder: Path) -> int:
        """Write the pack; returns its size in bytes, all files of the folder counted.

        `pack.json` is taken away first and written last: there is no pack in between.

        Raises:
            InvalidInputError: It is larger than can be carried.
        """
        import numpy as np

        begin_pack(folder)
        arrays: dict[str, Array] = {}
        for name in _ARRAYS:
            value = getattr(self, name)
            if isinstance(value, Ragged):
                arrays[name], arrays[f"{name}.ends"] = value.values, value.ends
            else:
                arrays[name] = value
        np.savez_compressed(folder / "pack.npz", allow_pickle=False, **arrays)
        self.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        about = json.dumps({**self.about, "sha256": _digest(*_contents(folder))}, indent=1) + "\n"
        size = len(about.encode()) + sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        if size > LARGEST_BYTES:
            raise InvalidInputError(
                f"The pack in {folder} takes {size / 2**20:.1f} MiB and may take {LARGEST_BYTES / 2**20:.0f}: give "
                "fewer files or a smaller --hard."
            )
        write_whole(folder / "pack.json", about)
        return size

    @classmethod
    def load(cls, folder: Path) -> Pack:
        """Read a pack.

        Raises:
            InvalidInputError: There is none in the folder, or it is damaged.
        """
        import numpy as np

        try:
            about = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
            contents = _contents(folder)
            if _digest(*contents) != about["sha256"]:
                raise ValueError("its files are not those that pack.json was written for")
            with np.load(io.BytesIO(contents[0]), allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            parts: dict[str, Any] = {
                name: Ragged(arrays[name], arrays[f"{name}.ends"]) if f"{name}.ends" in arrays else arrays[name]
                for name in _ARRAYS
            }
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InvalidInputError(
                f"{folder} holds no data pack ({error}): make one with `python -m "
                "focus_rag.embedded.real_reader.build_pack`."
            ) from error
        return cls(**parts, tokenizer=load_tokenizer(folder), about=about)


def begin_pack(folder: Path) -> None:
    """Make the folder, and no pack of it until the next one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pack.json").unlink(missing_ok=True)


def _contents(folder: Path) -> tuple[bytes, bytes]:
    """What a pack's digest is of."""
    return (folder / "pack.npz").read_bytes(), (folder / "tokenizer.json").read_bytes()


def _digest(arrays: bytes, tokenizer: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(arrays).digest() + tokenizer).hexdigest()


_ARRAYS = tuple(one.name for one in fields(Pack) if one.name not in ("tokenizer", "about"))
