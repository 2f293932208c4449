"""Hand on the best documents of what a retriever brings, without asking a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import patch_config
from pydantic import ConfigDict, Field, ValidationError

from focus_rag import InvalidInputError, ScoreKind, as_passages, best_passages
from langchain_focus_rag.capture import side_by_side


class KeepBestRetriever(BaseRetriever):
    """The best documents of another retriever, in its order: by their scores, if they carry any (see `keep_scores`),
    and the words they share with the query.

    Scores count where all documents have one, of one kind, and stand in an order, best or worst first: an ensemble's
    come from several retrievers and do not.

    Attributes:
        retriever: The other one.
        top_n: How many to hand on.
        by: What to go by.
        score_kind: What its scores are, if it is known (see `focus_rag.estimate_noise`).
        higher_is_better: Orientation of the scores; by default their documents or their order tell it.
    """

    model_config = ConfigDict(extra="forbid")

    retriever: RetrieverLike
    top_n: int = Field(ge=1, strict=True)
    by: Literal["scores", "words", "both"] = "both"
    score_kind: ScoreKind | None = None
    higher_is_better: bool | None = None

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """As in LangChain; the other retriever gets the configuration of the call too, which may say what a user is to
        see.
        """
        return super().invoke(input, config, called_with=config, **kwargs)

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """As `invoke`."""
        return await super().ainvoke(input, config, called_with=config, **kwargs)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        called_with: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        return self._best(
            query, self.retriever.invoke(query, patch_config(called_with, callbacks=run_manager.get_child()), **kwargs)
        )

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        called_with: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        return self._best(
            query,
            await self.retriever.ainvoke(query, patch_config(called_with, callbacks=run_manager.get_child()), **kwargs),
        )

    def _best(self, query: str, documents: Any) -> list[Document]:
        documents = list(documents) if isinstance(documents, Iterable) else [documents]
        wrong = [type(one).__name__ for one in documents if not isinstance(one, Document)]
        if wrong:
            raise InvalidInputError(f"keep_best takes a retriever, which returns documents; got {wrong[0]}.")
        found = side_by_side((document, None) for document in documents)
        passages = as_passages([(text, score) for text, score, _ in found.rows])
        is_told = self.higher_is_better is not None or self.score_kind not in (None, "unknown")
        way = self.higher_is_better if is_told else found.higher_is_better
        by = self.by if is_told or _of_one_retriever([passage.score for passage in passages], way) else "words"
        best = best_passages(passages, query, self.top_n, by=by, higher_is_better=way, score_kind=self.score_kind)
        return [documents[place] for place in best]


def _of_one_retriever(scores: Sequence[float | None], higher_is_better: bool | None) -> bool:
    """Whether every document has a score and they stand in an order, the one that they are said to have if any."""
    known = [score for score in scores if score is not None]
    falls, rises = known == sorted(known, reverse=True), known == sorted(known)
    return len(known) == len(scores) and (
        falls or rises if higher_is_better is None else falls if higher_is_better else rises
    )


def keep_best(retriever: RetrieverLike, top_n: int = 8, **known: Any) -> KeepBestRetriever:
    """A retriever that hands on the best documents of another: `keep_best(store.as_retriever(search_kwargs={"k":
    20}))`.

    For questions that one passage answers, among many that do not. It costs no model, and shared words find what an
    embedding is blind to; but what is left out cannot be read, by a question that needs several passages or by a
    summary.

    Args:
        retriever: Any retriever; inside `keep_scores` where it searches a vector store.
        top_n: How many documents to hand on.
        **known: `by`, `score_kind` and `higher_is_better`, see `KeepBestRetriever`.

    Raises:
        InvalidInputError: It is not a retriever, or an argument cannot be used.
    """
    try:
        return KeepBestRetriever(retriever=retriever, top_n=top_n, **known)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidInputError(f"keep_best: {'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from error
