"""Keep the scores that LangChain's vector store retrievers throw away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

from focus_rag import InvalidInputError, Passage
from langchain_focus_rag.capture import HIGHER_IS_BETTER_KEY, SCORE_KEY


class ScoredVectorStoreRetriever(VectorStoreRetriever):
    """A vector store retriever whose documents carry the store's raw score in `metadata["score"]`.

    Which way up the scores are is told by the order in which the store returns them, never by its name or settings:
    relevance scores that LangChain derives from distances leave [0, 1] and, for some stores, turn the order round.
    `metadata["higher_is_better"]` says what the order said; it is missing where all scores are equal. Code that puts
    another kind of score into `metadata["score"]` is to remove it; where the two contradict each other, the scores are
    not used.
    """

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options = {**self.search_kwargs, **kwargs}
        if self.search_type == "similarity":
            return _scored(self.vectorstore.similarity_search_with_score(query, **options))
        documents = super()._get_relevant_documents(query, run_manager=run_manager, **kwargs)
        return _rescored(
            documents, self.vectorstore.similarity_search_with_score(query, **_search_options(options, len(documents)))
        )

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options = {**self.search_kwargs, **kwargs}
        if self.search_type == "similarity":
            return _scored(await self.vectorstore.asimilarity_search_with_score(query, **options))
        documents = await super()._aget_relevant_documents(query, run_manager=run_manager, **kwargs)
        return _rescored(
            documents,
            await self.vectorstore.asimilarity_search_with_score(query, **_search_options(options, len(documents))),
        )


def keep_scores(retriever: VectorStoreRetriever) -> ScoredVectorStoreRetriever:
    """The same retriever, with scores: `keep_scores(store.as_retriever(search_kwargs={"k": 10}))`.

    Documents that several searches found with different scores are no longer equal: inside a retriever that asks in
    several ways and merges what it gets, they come once for each way, unless `keep_best` stands around it.

    Args:
        retriever: What `VectorStore.as_retriever` returned, of any search type.

    Raises:
        InvalidInputError: The store knows no scores, or it is another kind of retriever. Those put scores, if they have
            any, into the metadata of their documents by themselves.
    """
    if not isinstance(retriever, VectorStoreRetriever):
        raise InvalidInputError(
            "keep_scores takes the retriever of a vector store (store.as_retriever(...)), got "
            f"{type(retriever).__name__}. Have other retrievers put their score into document.metadata['score']."
        )
    kind = type(retriever)
    if kind not in (VectorStoreRetriever, ScoredVectorStoreRetriever):
        # Its own way to retrieve, which may filter what a user is to see, would be lost.
        raise InvalidInputError(
            f"keep_scores takes LangChain's own vector store retriever; {kind.__name__} retrieves in its own way. "
            "Have it put the score into document.metadata['score']."
        )
    if type(retriever.vectorstore).similarity_search_with_score is VectorStore.similarity_search_with_score:
        raise InvalidInputError(
            f"{type(retriever.vectorstore).__name__} has no similarity_search_with_score, so there are no scores to "
            "keep: leave its retriever as it is."
        )
    return ScoredVectorStoreRetriever(**{name: getattr(retriever, name) for name in kind.model_fields})


def _search_options(options: dict[str, Any], found: int) -> dict[str, Any]:
    """Options of the plain search that looks up the scores of what another search type found."""
    kept = {name: value for name, value in options.items() if name not in ("lambda_mult", "fetch_k", "score_threshold")}
    return {**kept, "k": max(int(options.get("fetch_k", 20)), int(options.get("k", 4)), found)}


def _scored(pairs: Sequence[tuple[Document, Any]]) -> list[Document]:
    scores = _usable(pairs)
    higher = _orientation(scores)
    return [_with_score(document, score, higher) for (document, _), score in zip(pairs, scores, strict=True)]


def _rescored(documents: Sequence[Document], pairs: Sequence[tuple[Document, Any]]) -> list[Document]:
    usable = _usable(pairs)
    higher = _orientation(usable)
    scores = {document.page_content: score for (document, _), score in zip(pairs, usable, strict=True)}
    return [_with_score(document, scores.get(document.page_content), higher) for document in documents]


def _usable(pairs: Sequence[tuple[Document, Any]]) -> list[float | None]:
    """The scores that a store gave, as a passage takes them: None where it left one out."""
    return [Passage("", score).score for _, score in pairs]


def _with_score(document: Document, score: float | None, higher_is_better: bool | None) -> Document:
    if score is None:
        return document
    known = {} if higher_is_better is None else {HIGHER_IS_BETTER_KEY: higher_is_better}
    # A copy: stores that keep documents in memory hand out their own.
    return document.model_copy(update={"metadata": {**document.metadata, SCORE_KEY: score, **known}})


def _orientation(scores: Sequence[float | None]) -> bool | None:
    """Of scores as a store returns them, the nearest first."""
    known = [score for score in scores if score is not None]
    if len(known) < 2 or known[0] == known[-1]:
        return None
    return known[0] > known[-1]
