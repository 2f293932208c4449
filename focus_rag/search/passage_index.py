"""Search over documents: embed passages, keep unit vectors in FAISS, return passages with cosine scores.

The default embedder (TF-IDF reduced by truncated SVD) is fitted on the documents themselves and needs no
download; a sentence-transformers model may take its place. What was computed for a folder is kept on disk
under a key made of the bytes of its files, as JSON and plain arrays.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from focus_rag.errors import InvalidInputError
from focus_rag.passages import Passage
from focus_rag.search.documents import DocumentSettings, list_files, read_folder, split_document, user_path
from focus_rag.search.embedders import Embedder, TfidfEmbedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CACHE_VERSION: Final = 3
_KEY: Final = re.compile(r"[0-9a-f]{64}")  # nothing else in the cache folder is ever deleted


class RetrievalSettings(BaseModel):
    """How documents are searched.

    Attributes:
        dimensions: Of the default embedder's vectors, at most.
        cache_folder: Where computed indexes are kept; None is the platform's cache folder for this user.
        use_cache: Whether they are kept at all.
        cached_indexes: How many are kept; the one that was not used for longest goes first.
        documents: What is read and how it is cut.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int = Field(default=384, ge=1)
    cache_folder: Path | None = None
    use_cache: bool = True
    cached_indexes: int = Field(default=50, ge=1)
    documents: DocumentSettings = DocumentSettings()


class PassageIndex:
    """Passages that can be searched.

    Attributes:
        passages: In the order they were given, without scores.
        left_out: For an index of a folder: why a file could not be read, one line for each.
    """

    def __init__(self, passages: Sequence[Passage], embedder: Embedder | None = None) -> None:
        """Embed the passages.

        Raises:
            InvalidInputError: There are none.
            DocumentError: They hold not one word.
        """
        if not passages:
            raise InvalidInputError("There is nothing to search: give at least one passage.")
        embedder = copy.copy(embedder or TfidfEmbedder())  # the caller's may be fitted to other passages, too
        texts = [passage.content for passage in passages]
        embedder.fit(texts)
        self._set(list(passages), embedder, embedder.embed(texts), [])

    def _set(
        self, passages: list[Passage], embedder: Embedder, vectors: NDArray[np.float32], left_out: list[str]
    ) -> None:
        import faiss

        self.passages = passages
        self.left_out = left_out
        self._embedder = embedder
        self._vectors = vectors
        self._faiss = faiss.IndexFlatIP(vectors.shape[1])
        self._faiss.add(np.ascontiguousarray(vectors))

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        settings: RetrievalSettings | None = None,
        embedder: Embedder | None = None,
    ) -> PassageIndex:
        """Read, cut and embed the documents below a folder, or load what an earlier call kept of the same
        bytes.

        A file that cannot be read is left out as long as another can; `left_out` says why. A damaged or
        unwritable cache is passed over.

        Raises:
            DocumentError: See `documents.read_folder`.
        """
        settings = settings or RetrievalSettings()
        embedder = copy.copy(embedder or TfidfEmbedder(settings.dimensions))
        kept = _cache_folder(settings) / _key(folder, settings, embedder) if settings.use_cache else None
        if kept is not None and (index := cls._load(kept, embedder)) is not None:
            return index
        documents, errors = read_folder(folder, settings.documents)
        passages = [passage for document in documents for passage in split_document(document, settings.documents)]
        index = cls(passages, embedder)
        index.left_out = [str(error) for error in errors]
        if kept is not None:
            index._keep(kept)
            _prune(kept, settings.cached_indexes)
        return index

    @property
    def searched_with(self) -> str:
        """What embeds passages and questions, by name."""
        return self._embedder.identity

    def search(self, question: str, top_k: int = 20) -> list[Passage]:
        """The best passages with their cosine similarity as score, best first; at most as many as there are.

        Raises:
            InvalidInputError: The question is empty or `top_k` is below 1.
        """
        if not isinstance(question, str) or not question.strip():
            raise InvalidInputError("The question is empty: ask something in words.")
        if top_k < 1:
            raise InvalidInputError(f"top_k must be at least 1, got {top_k}.")
        scores, places = self._faiss.search(self._embedder.embed([question]), min(top_k, len(self.passages)))
        return [
            Passage(passage.text, score=float(score), title=passage.title, id=passage.id)
            for score, place in zip(scores[0], places[0], strict=True)
            for passage in [self.passages[place]]
        ]

    def _keep(self, folder: Path) -> None:
        data, arrays = self._embedder.state()
        record = {
            "passages": [[passage.text, passage.title, passage.id] for passage in self.passages],
            "left_out": self.left_out,
            "embedder": data,
        }
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and moved: a reader never meets half an index.
            aside = Path(tempfile.mkdtemp(prefix="new-", dir=folder.parent))
            try:
                (aside / "index.json").write_text(json.dumps(record), encoding="utf-8")
                stored = {
                    "vectors": self._vectors,
                    **{f"embedder_{name}": array for name, array in arrays.items()},
                }
                np.savez(aside / "arrays.npz", allow_pickle=False, **stored)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(aside, folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        except OSError:
            return

    @classmethod
    def _load(cls, folder: Path, embedder: Embedder) -> PassageIndex | None:
        try:
            record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            with (folder / "arrays.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            passages = [Passage(text, title=title, id=id_) for text, title, id_ in record["passages"]]
            vectors = np.asarray(arrays.pop("vectors"), dtype=np.float32)
            if vectors.ndim != 2 or len(vectors) != len(passages):
                return None
            embedder.load_state(record["embedder"], {name.removeprefix("embedder_"): a for name, a in arrays.items()})
            index = cls.__new__(cls)
            index._set(passages, embedder, vectors, list(record["left_out"]))
            _mark_used(folder)
            return index
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, InvalidInputError):
            return None


def _key(folder: str | Path, settings: RetrievalSettings, embedder: Embedder) -> str:
    """Digest of everything that decides the index: files by name and bytes, where they are, cutting, embedder."""
    root = user_path(folder)
    digest = hashlib.sha256(
        json.dumps(
            [_CACHE_VERSION, embedder.identity, settings.documents.model_dump(mode="json"), str(root), _readers()]
        ).encode()
    )
    for path in list_files(root, settings.documents):
        name = path.name if root.is_file() else path.relative_to(root).as_posix()
        try:
            size = path.stat().st_size
            content = b"" if size > settings.documents.max_file_bytes else path.read_bytes()
        except OSError:
            size, content = -1, b""
        digest.update(json.dumps([name, size]).encode())
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _readers() -> list[str | None]:
    """What PDFs are read with, by version: with another one a file may be read that could not be."""
    found: list[str | None] = []
    for package in ("pypdf", "cryptography"):
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append(None)
    return found


def _mark_used(folder: Path) -> None:
    try:
        os.utime(folder)
    except OSError:  # a cache that may only be read
        return


def _prune(newest: Path, limit: int) -> None:
    """Delete the indexes beside `newest` that were not used for longest, so that `limit` are left with it."""
    try:
        others = [one for one in newest.parent.iterdir() if _KEY.fullmatch(one.name) and one != newest]
        others.sort(key=lambda one: one.stat().st_mtime)
    except OSError:  # another process deletes as well: the next index that is kept looks again
        return
    for one in others[: max(len(others) + 1 - limit, 0)]:
        shutil.rmtree(one, ignore_errors=True)


def _cache_folder(settings: RetrievalSettings) -> Path:
    if settings.cache_folder is not None:
        return settings.cache_folder
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("focus_rag")) / "indexes"
