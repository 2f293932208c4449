"""Hand on the best nodes of what a retriever brings, without asking a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import ConfigDict, Field, model_validator

from focus_rag import ScoreKind, as_passages, best_passages


class KeepBest(BaseNodePostprocessor):
    """The best nodes in their order: `index.as_query_engine(similarity_top_k=20,
    node_postprocessors=[KeepBest(top_n=8)])`.

    Best by their scores and by the words that they share with the query, title and other metadata that the model is
    shown included. For questions that one node answers, among many that do not. It costs no model, and shared words
    find what an embedding is blind to; but what is left out cannot be read, by a question that needs several nodes or
    by a summary. It belongs before postprocessors that reorder, for the order of scores tells distances; and takes
    `by="words"` after retrievers whose scores are put into one list without being made comparable.

    Attributes:
        top_n: How many to hand on.
        by: What to go by.
        score_kind: What the scores are, if it is known (see `focus_rag.estimate_noise`).
        higher_is_better: Orientation of the scores; by default their order tells it.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: int = Field(default=8, ge=1, strict=True)
    by: Literal["scores", "words", "both"] = "both"
    score_kind: ScoreKind | None = None
    higher_is_better: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_class_name(cls, data: Any) -> Any:
        """LlamaIndex writes its name into every dump of a component."""
        return (
            {name: value for name, value in data.items() if name != "class_name"} if isinstance(data, Mapping) else data
        )

    @classmethod
    def class_name(cls) -> str:
        """Name of the component in LlamaIndex."""
        return "KeepBest"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        known: dict[str, Any] = {
            "by": self.by,
            "score_kind": self.score_kind,
            "higher_is_better": self.higher_is_better,
        }
        query = None if query_bundle is None else query_bundle.query_str
        shown = as_passages([(node.node.get_content(metadata_mode=MetadataMode.LLM), node.score) for node in nodes])
        best = best_passages(shown, query, self.top_n, **known)
        return [nodes[place] for place in best]
