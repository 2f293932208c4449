"""What focusing brings in chains that know nothing of it, where only the model is another: prompts as people write
them, passages found by the adapters.

Test questions of the generated world, 20 passages by BM25; exact answers from the gold passage alone, bare, focused,
and with the best eight kept, and how well confidence tells right answers from wrong ones, with the gold passage there
and missing. LangChain's retriever hands on no scores, as its vector stores do; LlamaIndex's does.

    python -m benchmarks.chains --output benchmarks/results/chains.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_focus_rag import ChatFocus, keep_best
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever as NodeRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index_focus_rag import FocusLLM, KeepBest, collect_reports

from benchmarks.intervention import written
from focus_rag import FocusGenerator, Passage
from focus_rag.embedded.retrieval import evaluation_examples
from focus_rag.evaluation.metrics import exact_match
from focus_rag.evaluation.statistics import bootstrap_mean, paired_difference
from focus_rag.examples import Example, examples_from_rows
from focus_rag.fitting.asking import is_answered_elsewhere, without_gold
from focus_rag.fitting.confidence_fitting import area_under_curve

PASSAGES, KEPT, NEW_TOKENS = 20, 8, 32
Retrieved = dict[str, tuple[Passage, ...]]


@dataclass(frozen=True)
class Said:
    """What came out of a chain for one question."""

    text: str
    report: dict[str, Any]


class Documents(BaseRetriever):
    """Brings what BM25 found, best first and without scores."""

    found: Retrieved

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return [Document(passage.text) for passage in self.found[query]]


class Nodes(NodeRetriever):
    """Brings what BM25 found, with its scores."""

    def __init__(self, found: Retrieved) -> None:
        super().__init__()
        self.found = found

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=TextNode(text=passage.text), score=passage.score)
            for passage in self.found[query_bundle.query_str]
        ]


SYSTEM = ChatPromptTemplate.from_messages(
    [("system", "Use the context below to answer what the user asks.\n\n{context}"), ("human", "{question}")]
)
ONE_MESSAGE = ChatPromptTemplate.from_template(
    "You answer questions. Here is some context; say so if the answer is not in it.\nContext: {context}\nQuestion: {question}\nAnswer:"
)
QUESTION_FIRST_TOO = ChatPromptTemplate.from_template(
    "Answer the question from the numbered sources.\nQuestion: {question}\n\n{context}\n\nQuestion: {question}"
)


def joined(documents: Sequence[Document]) -> str:
    return "\n\n".join(one.page_content for one in documents)


def numbered(documents: Sequence[Document]) -> str:
    return "\n".join(f"({place}) {one.page_content}" for place, one in enumerate(documents, 1))


def langchain(prompt: ChatPromptTemplate, join: Callable[[Sequence[Document]], str]) -> Callable[..., list[Said]]:
    """A chain of LangChain's: retriever, prompt, model."""

    def ask(generator: FocusGenerator, found: Retrieved, keep: bool, **focus: Any) -> list[Said]:
        retriever: Any = keep_best(Documents(found=found), KEPT) if keep else Documents(found=found)
        llm = ChatFocus(generator, max_tokens=NEW_TOKENS, **focus)
        chain = {"context": retriever | join, "question": RunnablePassthrough()} | prompt | llm
        return [Said(message.text, message.response_metadata["focus_rag"]) for message in chain.batch(list(found))]

    return ask


def llama_index(engine_of: Callable[..., Any], method: str) -> Callable[..., list[Said]]:
    """An engine of LlamaIndex's with its own prompts."""

    def ask(generator: FocusGenerator, found: Retrieved, keep: bool, **focus: Any) -> list[Said]:
        llm = FocusLLM(generator, max_new_tokens=NEW_TOKENS, **focus)
        said = []
        for question in found:
            engine = engine_of(Nodes(found), llm=llm, node_postprocessors=[KeepBest(top_n=KEPT)] if keep else [])
            with collect_reports() as reports:
                text = str(getattr(engine, method)(question))
            said.append(Said(text, reports[-1]))
        return said

    return ask


CHAINS = {
    "LangChain, passages in the system message": langchain(SYSTEM, joined),
    "LangChain, one message, question last": langchain(ONE_MESSAGE, joined),
    "LangChain, numbered, question before and after": langchain(QUESTION_FIRST_TOO, numbered),
    "LlamaIndex, query engine": llama_index(RetrieverQueryEngine.from_args, "query"),
    "LlamaIndex, context chat engine": llama_index(ContextChatEngine.from_defaults, "chat"),
}


def main() -> None:
    """Ask every chain every question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--rich", type=float, nargs="*", default=[0.0, 1.0])
    parser.add_argument("--chains", nargs="*", help="only those whose names hold one of these words")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    generator = FocusGenerator.from_pretrained(None, options.profile)
    rows = []
    for rich in options.rich:
        examples = examples_from_rows(
            evaluation_examples("test", options.questions, PASSAGES, 1.0, 0, rich=rich)
        ).examples
        own = list({one.question: one for one in examples}.values())
        for name, ask in CHAINS.items():
            if options.chains and not any(word in name for word in options.chains):
                continue
            rows.append({"chain": name, "rich": rich, **measured(generator, own, ask)})
            print(f"{name}, {rich:.0%} new: done", file=sys.stderr)
    print(written({"passages": PASSAGES, "kept": KEPT, "rows": rows}, options.output), end="")


def measured(generator: FocusGenerator, examples: Sequence[Example], ask: Callable[..., list[Said]]) -> dict[str, Any]:
    found = {one.question: one.passages for one in examples}
    auto = ask(generator, found, False)
    gold = {one.question: one.gold_only().passages for one in examples}
    right = {
        "gold alone": _right(ask(generator, gold, False), examples),
        "bare": _right(ask(generator, found, False, alpha=0.0), examples),
        "auto": _right(auto, examples),
        "best kept, auto": _right(ask(generator, found, True), examples),
    }
    alone = [one for one in examples if not is_answered_elsewhere(one)]
    missing = ask(generator, {one.question: without_gold(one) for one in alone}, False)
    return {
        "n": len(examples),
        "right": {name: bootstrap_mean(values).to_dict() for name, values in right.items()},
        "auto minus bare": paired_difference(right["auto"], right["bare"]).to_dict(),
        "best kept minus auto": paired_difference(right["best kept, auto"], right["auto"]).to_dict(),
        "passages found": float(np.mean([len(one.report["passages"]) == PASSAGES for one in auto])),
        "confidence": _told(
            [
                *zip(auto, right["auto"], examples, strict=True),
                *((said, 0.0, one) for said, one in zip(missing, alone, strict=True)),
            ]
        ),
    }


def _right(said: Sequence[Said], examples: Sequence[Example]) -> list[float]:
    return [exact_match(one.text, example.answers) for one, example in zip(said, examples, strict=True)]


def _told(judged: Sequence[tuple[Said, float, Example]]) -> dict[str, Any]:
    """How well the confidence of those answers that have one tells the right ones."""
    rated = [
        (said.report["confidence"], is_right == 1.0, one.key)
        for said, is_right, one in judged
        if said.report["confidence"] is not None
    ]
    told, is_right, keys = (np.array(column) for column in zip(*rated, strict=True))
    return {
        "answers": len(rated),
        "of": len(judged),
        "right": int(is_right.sum()),
        "auroc": area_under_curve(told, is_right, keys, 0),
        "below 0.3": {"right": float((told[is_right] < 0.3).mean()), "wrong": float((told[~is_right] < 0.3).mean())},
    }


if __name__ == "__main__":
    main()
