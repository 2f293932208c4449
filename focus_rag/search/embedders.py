"""Texts -> unit vectors: the default embedder, fitted on the documents themselves, and sentence-transformers models."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from focus_rag.errors import DocumentError, InvalidInputError, MissingDependencyError
from focus_rag.shared_words import terms_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Function words only: scikit-learn's own list also drops "mill", "fire", "system" and others people ask about.
_STOP_WORDS: Final = (
    "a about an and any are as at be been being but by can could did do does for from had has have he her "
    "hers him his how i if in into is it its many me much my no nor not of on or our ours she should so "
    "some than that the their them then there these they this those to us was we were what when where "
    "which who whom whose why will with would you your"
)


class Embedder(Protocol):
    """Texts to unit vectors. `identity` names everything that decides them but the texts."""

    @property
    def identity(self) -> str: ...

    def fit(self, texts: Sequence[str]) -> None:
        """Learn from the passages, if there is anything to learn."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape (texts, dimensions), of length 1; 0 for a text without any known word."""

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What `fit` learned, as JSON and arrays."""

    def load_state(self, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """The opposite of `state`."""


class TfidfEmbedder:
    """Latent semantic analysis: TF-IDF over single words without English function words, then truncated SVD.

    With no more passages than dimensions the reduction is exact: scores order passages as plain TF-IDF cosine
    does.
    """

    def __init__(self, dimensions: int = 384) -> None:
        if dimensions < 1:
            raise InvalidInputError(f"dimensions must be at least 1, got {dimensions}.")
        self.dimensions = dimensions
        self._vectorizer: Any = None
        self._components: NDArray[np.float32] | None = None

    @property
    def identity(self) -> str:
        return f"tfidf-svd-{self.dimensions}"

    def fit(self, texts: Sequence[str]) -> None:
        """Learn vocabulary, weights and components.

        Raises:
            DocumentError: There is not one word to search for.
        """
        vectorizer = self._new_vectorizer(None)
        try:
            counts = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise DocumentError("The documents hold no words to search for.") from error
        self._components = np.asarray(self._reduce(counts), dtype=np.float32)
        self._vectorizer = vectorizer

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of shape (texts, dimensions)."""
        if self._components is None:
            raise InvalidInputError("The embedder knows no vocabulary yet: fit it on the passages first.")
        counts = self._vectorizer.transform(texts)
        return _unit(np.asarray(counts @ self._components.T, dtype=np.float32))

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Vocabulary as JSON; inverse document frequencies and components as arrays."""
        if self._components is None:
            raise InvalidInputError("The embedder knows no vocabulary yet: fit it on the passages first.")
        words = sorted(self._vectorizer.vocabulary_, key=self._vectorizer.vocabulary_.__getitem__)
        return {"words": words}, {"idf": self._vectorizer.idf_, "components": self._components}

    def load_state(self, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """What `state` returned."""
        vectorizer = self._new_vectorizer({word: i for i, word in enumerate(data["words"])})
        vectorizer.idf_ = arrays["idf"]
        self._vectorizer = vectorizer
        self._components = np.asarray(arrays["components"], dtype=np.float32)

    def _reduce(self, counts: Any) -> Any:
        """Components of shape (dimensions, words) of the weights of shape (passages, words)."""
        passages, words = counts.shape
        if words == 1:
            return np.ones((1, 1))
        if passages == 1:
            return counts.toarray()
        from sklearn.decomposition import TruncatedSVD

        svd = TruncatedSVD(min(self.dimensions, passages, words), random_state=0)
        # The explained variance, which nobody reads, is 0 / 0 where all passages are equal.
        with np.errstate(divide="ignore", invalid="ignore"):
            return svd.fit(counts).components_

    @staticmethod
    def _new_vectorizer(vocabulary: dict[str, int] | None) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(
            vocabulary=vocabulary,
            stop_words=_STOP_WORDS.split(),
            strip_accents="unicode",
            sublinear_tf=True,
            tokenizer=terms_of,
            token_pattern=None,
        )


class SentenceTransformerEmbedder:
    """A sentence-transformers model, by name or folder."""

    def __init__(self, model: str) -> None:
        """Load it.

        Raises:
            MissingDependencyError: sentence-transformers is not installed.
            InvalidInputError: There is no such model, here or on the Hub.
        """
        self._name, self._version = model, _version_of(model)
        try:
            self._model = _sentence_transformers().SentenceTransformer(model)
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"The embedding model {model!r} cannot be loaded: {error}") from error

    @property
    def identity(self) -> str:
        return f"sentence-transformers-{self._name}{self._version}"

    def fit(self, texts: Sequence[str]) -> None:
        """Nothing: the model is already trained."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of shape (texts, dimensions)."""
        return _unit(np.asarray(self._model.encode(list(texts)), dtype=np.float32))

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Nothing."""
        return {}, {}

    def load_state(self, data: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Nothing."""


def _version_of(model: str) -> str:
    """Tells what a folder held when it was loaded from what it holds after another training; nothing for a name on the
    Hub.
    """
    files = sorted(file for file in Path(model).rglob("*") if file.is_file()) if Path(model).is_dir() else []
    if not files:
        return ""
    stats = [(file.relative_to(model).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return "-" + hashlib.sha256(repr((str(Path(model).resolve()), stats)).encode("utf-8", "replace")).hexdigest()[:16]


def best_embedder() -> Embedder:
    """all-MiniLM-L6-v2 where sentence-transformers is installed and has or can fetch it, else the default embedder."""
    if importlib.util.find_spec("sentence_transformers") is not None:
        with contextlib.suppress(InvalidInputError, MissingDependencyError):
            return SentenceTransformerEmbedder("sentence-transformers/all-MiniLM-L6-v2")
    return TfidfEmbedder()


def _sentence_transformers() -> Any:
    try:
        return importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise MissingDependencyError(
            "This embedder needs sentence-transformers: pip install 'focus-rag[embeddings]'."
        ) from error


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-12)
    return unit
