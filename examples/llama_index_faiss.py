"""Ask documents through a LlamaIndex query engine over a real FAISS index; runs offline on the model that comes with
the package.

    python examples/llama_index_faiss.py

What to watch with scores: `FaissVectorStore` hands on what its index computes. `IndexFlatL2` gives squared distances,
of which the *lowest* is best, so LlamaIndex's `SimilarityPostprocessor` would keep the worst and drop the best.
focus_rag tells distances by their order at retrieval; a single score, or equal ones, cannot tell, so say it where you
know it: `score_kind="l2_squared"`. An `IndexFlatIP` over normalised vectors gives cosines instead, which both
understand.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import faiss
from llama_index.core import PromptTemplate, Settings, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index_focus_rag import FocusLLM, collect_reports
from pydantic import PrivateAttr

from focus_rag.embedded.demo_documents import write_demo
from focus_rag.search.embedders import TfidfEmbedder

PROMPT = PromptTemplate(
    "Answer the question from the passages. If they do not hold the answer, say: not stated.\n"
    "Question: {query_str}\n\n{context_str}\n\nQuestion: {query_str}"
)


class LocalEmbedding(BaseEmbedding):
    """TF-IDF vectors, so that nothing is downloaded."""

    _embedder: TfidfEmbedder = PrivateAttr(default_factory=TfidfEmbedder)

    def fit(self, texts: list[str]) -> LocalEmbedding:
        self._embedder.fit(texts)
        return self

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embedder.embed([text])[0].tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def demo() -> tuple[list[TextNode], list[dict[str, Any]]]:
    """Documents and questions that come with the package."""
    with tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder))
        nodes = [
            TextNode(text=path.read_text(encoding="utf-8").partition("\n\n")[2].strip(), id_=path.stem)
            for path in sorted(Path(folder).glob("*.md"))
        ]
        lines = (Path(folder) / "questions.jsonl").read_text("utf-8").splitlines()
    return nodes, [json.loads(line) for line in lines]


def main() -> None:
    Settings.llm = FocusLLM(max_new_tokens=40, score_kind="l2_squared")
    nodes, asked = demo()
    embedding = LocalEmbedding().fit([node.text for node in nodes])
    dimensions = len(embedding.get_text_embedding("width"))
    store = FaissVectorStore(faiss_index=faiss.IndexFlatL2(dimensions))
    index = VectorStoreIndex(
        nodes, storage_context=StorageContext.from_defaults(vector_store=store), embed_model=embedding
    )
    engine = index.as_query_engine(similarity_top_k=8, text_qa_template=PROMPT)

    for row in asked[:5]:
        with collect_reports() as reports:
            response = engine.query(row["question"])
        focus = reports[-1]
        print(f"\n{row['question']}\n  {str(response).strip()}   (right: {row['answers'][0]})")
        print(f"  alpha {focus['alpha']:.3f}, noise {focus['noise']:.2f}: {focus['reason']}")
        read = max(focus["passages"], key=lambda use: use["attention"] or 0.0, default=None)
        if read is not None:
            print(f"  read most in {read['id']}, distance {read['score']:.2f}")


if __name__ == "__main__":
    main()
