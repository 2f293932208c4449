"""Ask documents through a LangChain chain over a real FAISS index; runs offline on the model that comes with the
package.

    python examples/langchain_faiss.py

What to watch with scores: `IndexFlatL2` gives squared distances, of which the *lowest* is best, and `as_retriever()`
drops them altogether. `keep_scores` hands on what the index said; which way up it is, focus_rag tells from the order.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import VectorStore
from langchain_focus_rag import ChatFocus, keep_scores

from focus_rag.embedded.demo_documents import write_demo
from focus_rag.search.embedders import TfidfEmbedder

PROMPT = ChatPromptTemplate.from_template(
    "Answer the question from the passages. If they do not hold the answer, say: not stated.\n"
    "Question: {question}\n\n{context}\n\nQuestion: {question}"
)


class FaissStore(VectorStore):
    """The smallest LangChain vector store over a FAISS index."""

    def __init__(self, documents: list[Document]) -> None:
        self._documents = documents
        self._embedder = TfidfEmbedder()
        texts = [document.page_content for document in documents]
        self._embedder.fit(texts)
        vectors = self._embedder.embed(texts)
        self._index = faiss.IndexFlatL2(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors))

    @classmethod
    def from_texts(cls, texts: list[str], embedding: Any, metadatas: Any = None, **_: Any) -> FaissStore:
        return cls([Document(text) for text in texts])

    def similarity_search(self, query: str, k: int = 4, **_: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k)]

    def similarity_search_with_score(self, query: str, k: int = 4, **_: Any) -> list[tuple[Document, float]]:
        distances, places = self._index.search(self._embedder.embed([query]), min(k, len(self._documents)))
        return [(self._documents[place], float(d)) for d, place in zip(distances[0], places[0], strict=True)]


def numbered(documents: list[Document]) -> str:
    return "\n\n".join(f"[{i}] {document.page_content}" for i, document in enumerate(documents, start=1))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder))
        documents = [
            Document(path.read_text(encoding="utf-8").partition("\n\n")[2].strip(), id=path.stem)
            for path in sorted(Path(folder).glob("*.md"))
        ]
        asked = [json.loads(line) for line in (Path(folder) / "questions.jsonl").read_text("utf-8").splitlines()[:5]]

    retriever = keep_scores(FaissStore(documents).as_retriever(search_kwargs={"k": 8}))
    chain = {"context": retriever | numbered, "question": RunnablePassthrough()} | PROMPT | ChatFocus(max_tokens=40)

    for row in asked:
        message = chain.invoke(row["question"])
        focus = message.response_metadata["focus_rag"]
        read = max(focus["passages"], key=lambda use: use["attention"] or 0.0)
        print(f"\n{row['question']}\n  {message.content.strip()}   (right: {row['answers'][0]})")
        print(f"  alpha {focus['alpha']:.3f}, noise {focus['noise']:.2f}: {focus['reason']}")
        print(f"  read most in {read['id']}, distance {read['score']:.2f}")


if __name__ == "__main__":
    main()
