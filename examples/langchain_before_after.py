"""One existing LangChain chain, before and after: only the line of the language model changes. Runs offline.

    -llm = ChatHuggingFace(llm=HuggingFacePipeline.from_model_id("Qwen/Qwen2.5-7B-Instruct", task="text-generation"))
    +llm = ChatFocus(model="Qwen/Qwen2.5-7B-Instruct", focus_profile="my-profile")

And once more with the scores, which LangChain's vector store retrievers throw away, and which a profile leans on where
it has them:

    -retriever = store.as_retriever(search_kwargs={"k": 12})
    +retriever = keep_scores(store.as_retriever(search_kwargs={"k": 12}))

    python examples/langchain_before_after.py

Nothing tells the new model about the retriever; it finds the passages of each call by itself. Here both are the model
that comes with the package, the one before with alpha 0, which leaves it exactly as it is.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_focus_rag import ChatFocus, keep_scores

from focus_rag import FocusGenerator
from focus_rag.embedded.demo_documents import write_demo
from focus_rag.search.embedders import TfidfEmbedder

PROMPT = ChatPromptTemplate.from_template(
    "Answer the question from the passages. If they do not hold the answer, say: not stated.\n"
    "Question: {question}\n\n{context}\n\nQuestion: {question}"
)


class LocalEmbeddings(Embeddings):
    """TF-IDF vectors, so that nothing is downloaded."""

    def __init__(self, texts: list[str]) -> None:
        self._embedder = TfidfEmbedder()
        self._embedder.fit(texts)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def existing_chain(texts: list[str], llm: Any, *, scored: bool = False) -> Any:
    """What people have: a vector store of LangChain's, its retriever, a prompt, a model."""
    store = InMemoryVectorStore(LocalEmbeddings(texts))
    store.add_texts(texts)
    retriever = store.as_retriever(search_kwargs={"k": 12})
    if scored:
        retriever = keep_scores(retriever)

    def join(documents: list[Document]) -> str:
        return "\n\n".join(f"[{i}] {document.page_content}" for i, document in enumerate(documents, start=1))

    return {"context": retriever | join, "question": RunnablePassthrough()} | PROMPT | llm | StrOutputParser()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_demo(Path(folder))
        texts = [p.read_text("utf-8").partition("\n\n")[2].strip() for p in sorted(Path(folder).glob("*.md"))]
        asked = [json.loads(line) for line in (Path(folder) / "questions.jsonl").read_text("utf-8").splitlines()]

    generator = FocusGenerator.from_pretrained()
    bare = ChatFocus(generator, alpha=0.0, max_tokens=40)
    focused = ChatFocus(generator, max_tokens=40)
    chains = {
        "before": existing_chain(texts, bare),
        "after": existing_chain(texts, focused),
        "with scores": existing_chain(texts, focused, scored=True),
    }
    questions = [row["question"] for row in asked]
    answers = {name: chain.batch(questions) for name, chain in chains.items()}
    right = dict.fromkeys(chains, 0)
    for place, row in enumerate(asked):
        said = {name: texts[place].strip() for name, texts in answers.items()}
        for name, text in said.items():
            right[name] += any(answer.lower() in text.lower() for answer in row["answers"])
        if len(set(said.values())) > 1:
            print(
                row["question"],
                *(f"  {name}: {text}" for name, text in said.items()),
                f"  right: {row['answers'][0]}",
                sep="\n",
            )
    print(f"\n{len(asked)} questions; right {', '.join(f'{name}: {count}' for name, count in right.items())}")


if __name__ == "__main__":
    main()
