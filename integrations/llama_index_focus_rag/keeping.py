"""Hand on the best nodes of what a retriever brings, without asking a model."""

from __future__ import annotations

from typing import Any

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import ConfigDict, Field

from focus_rag import ScoreKind, as_passages, best_passages
from llama_index_focus_rag.calls import from_node


class KeepBest(BaseNodePostprocessor):
    """The best nodes in their order: `index.as_query_engine(similarity_top_k=20, node_postprocessors=[KeepBest(top_n=8)])`.

    Best by their scores and by the words that they share with the query. For questions that one node answers, among many that do not. It costs no model, and
    shared words find what an embedding is blind to; but what is left out cannot be read, by a question that needs several nodes or by a summary.

    Attributes:
        top_n: How many to hand on.
        score_kind: What the scores are, if it is known (see `focus_rag.estimate_noise`).
        higher_is_better: Orientation of the scores; by default their order tells it.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: int = Field(default=8, ge=1)
    score_kind: ScoreKind | None = None
    higher_is_better: bool | None = None

    @classmethod
    def class_name(cls) -> str:
        """Name of the component in LlamaIndex."""
        return "KeepBest"

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None) -> list[NodeWithScore]:
        known: dict[str, Any] = {"score_kind": self.score_kind, "higher_is_better": self.higher_is_better}
        query = None if query_bundle is None else query_bundle.query_str
        best = best_passages(as_passages(nodes, from_node), query, self.top_n, **known)
        return [nodes[place] for place in best]
