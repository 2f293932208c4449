"""Hand on the best documents of what a retriever brings, without asking a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from pydantic import ConfigDict, Field, ValidationError

from focus_rag import InvalidInputError, ScoreKind, as_passages, best_passages
from langchain_focus_rag.capture import side_by_side


class KeepBestRetriever(BaseRetriever):
    """The best documents of another retriever, in its order: by their scores, if they carry any (see `keep_scores`), and the words they share with the query.

    Attributes:
        retriever: The other one.
        top_n: How many to hand on.
        score_kind: What its scores are, if it is known (see `focus_rag.estimate_noise`).
        higher_is_better: Orientation of the scores; by default their documents or their order tell it.
    """

    model_config = ConfigDict(extra="forbid")

    retriever: RetrieverLike
    top_n: int = Field(ge=1)
    score_kind: ScoreKind | None = None
    higher_is_better: bool | None = None

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any) -> list[Document]:
        return self._best(query, self.retriever.invoke(query, {"callbacks": run_manager.get_child()}, **kwargs))

    async def _aget_relevant_documents(self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any) -> list[Document]:
        return self._best(query, await self.retriever.ainvoke(query, {"callbacks": run_manager.get_child()}, **kwargs))

    def _best(self, query: str, documents: Sequence[Document]) -> list[Document]:
        found = side_by_side((document, None) for document in documents)
        known = found.higher_is_better if self.higher_is_better is None and self.score_kind in (None, "unknown") else self.higher_is_better
        passages = as_passages([(text, score) for text, score, _ in found.rows])
        best = best_passages(passages, query, self.top_n, higher_is_better=known, score_kind=self.score_kind)
        return [documents[place] for place in best]


def keep_best(retriever: RetrieverLike, top_n: int = 8, **known: Any) -> KeepBestRetriever:
    """A retriever that hands on the best documents of another: `keep_best(store.as_retriever(search_kwargs={"k": 20}))`.

    For questions that one passage answers, among many that do not. It costs no model, and shared words find what an embedding is blind to; but what is left out
    cannot be read, by a question that needs several passages or by a summary.

    Args:
        retriever: Any retriever; inside `keep_scores` where it searches a vector store.
        top_n: How many documents to hand on.
        **known: `score_kind` and `higher_is_better`, see `KeepBestRetriever`.

    Raises:
        InvalidInputError: It is not a retriever, or an argument cannot be used.
    """
    try:
        return KeepBestRetriever(retriever=retriever, top_n=top_n, **known)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidInputError(f"keep_best: {'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from error
