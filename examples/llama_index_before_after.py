"""One existing LlamaIndex chain, before and after: only the line of the language model changes. Runs offline.

    -llm = HuggingFaceLLM(model_name="Qwen/Qwen2.5-7B-Instruct", tokenizer_name="Qwen/Qwen2.5-7B-Instruct")
    +llm = FocusLLM(model="Qwen/Qwen2.5-7B-Instruct", focus_profile="my-profile")

    python examples/llama_index_before_after.py

Nothing tells the new model about the retriever; it finds the passages of each call by itself. Here both are the model
that comes with the package, the one before with alpha 0, which leaves it exactly as it is.
"""

from __future__ import annotations

from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index_faiss import PROMPT, LocalEmbedding, demo
from llama_index_focus_rag import FocusLLM, collect_reports

from focus_rag import FocusGenerator


def existing_chain(nodes: list[TextNode], llm: Any) -> Any:
    """What people have: a vector index, a query engine, a model."""
    embedding = LocalEmbedding().fit([node.text for node in nodes])
    index = VectorStoreIndex(nodes, embed_model=embedding)
    return index.as_query_engine(llm=llm, similarity_top_k=12, text_qa_template=PROMPT)


def main() -> None:
    nodes, asked = demo()
    generator = FocusGenerator.from_pretrained()
    bare = FocusLLM(generator, alpha=0.0, max_new_tokens=40)
    focused = FocusLLM(generator, max_new_tokens=40)
    before, after = existing_chain(nodes, bare), existing_chain(nodes, focused)

    right = {"before": 0, "after": 0}
    for row in asked[:12]:
        print(f"\n{row['question']}   (right: {row['answers'][0]})")
        for name, engine in (("before", before), ("after", after)):
            with collect_reports() as reports:
                answer = str(engine.query(row["question"])).strip()
            right[name] += row["answers"][0].lower() in answer.lower()
            print(f"  {name:6} {answer}\n         {reports[-1]['reason']}")
    print(f"\nright of 12: before {right['before']}, after {right['after']}")


if __name__ == "__main__":
    main()
