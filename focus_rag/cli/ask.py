"""`focus-rag ask`: a question to a folder of documents."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focus_rag.cli.loading import (
    AlphaOption,
    DeviceOption,
    JsonOption,
    KeepBestOption,
    ModelOption,
    ProfileOption,
    SplitOption,
    TemplateOption,
    load_generator,
    parse_alpha,
    parse_split,
    parse_template,
    require_profile,
    split_at,
)
from focus_rag.cli.output import note, one_line, progress, quiet_libraries, shorten, write_json, write_table

if TYPE_CHECKING:
    from focus_rag.answers import Answer
    from focus_rag.generator import FocusGenerator
    from focus_rag.passages import Passage
    from focus_rag.search.embedders import Embedder
    from focus_rag.search.passage_index import PassageIndex

_TEXT_WIDTH = 60


def command(
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    docs: Annotated[Path, typer.Option("--docs", help="Folder with .txt, .md, .html or .pdf files, or one such file.")],
    model: ModelOption = None,
    profile: ProfileOption = None,
    alpha: AlphaOption = "auto",
    top_k: Annotated[int, typer.Option("--top-k", help="Passages to retrieve.")] = 20,
    keep_best: KeepBestOption = None,
    split: SplitOption = "auto",
    template: TemplateOption = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")] = 256,
    embedder: Annotated[
        str | None,
        typer.Option(
            "--embedder",
            help="A sentence-transformers model to search with, or tfidf (reduced by SVD, needs no model); default: "
            "all-MiniLM-L6-v2 where sentence-transformers is installed and has it, else tfidf.",
        ),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep the index of the documents for the next call.")
    ] = True,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Also write the answer as an HTML page, its passages shaded by attention."),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from documents and name the sources.

    Example: focus-rag ask "When was the mill built?" --docs ./reports
    """
    from focus_rag.errors import InvalidInputError

    factor, leaning = parse_alpha(alpha), parse_split(split)
    parse_template(template)  # what is wrong with it is told before documents are read
    if not question.strip():
        raise InvalidInputError("The question is empty: ask something in words.")
    if top_k < 1:
        raise InvalidInputError(f"--top-k must be at least 1, got {top_k}.")
    require_profile(model, profile, factor, leaning)
    if max_new_tokens < 1:
        raise InvalidInputError(f"--max-new-tokens must be at least 1, got {max_new_tokens}.")
    if report is not None and not report.parent.is_dir():
        raise InvalidInputError(f"--report: there is no folder {report.parent}.")
    index = _index(docs, embedder, cache)
    for line in index.left_out:
        note(f"left out: {line}")
    passages = index.search(question, top_k)
    generator = load_generator(model, profile, device, template=template)
    with progress() as bar:
        bar.add_task("answering", total=None)
        options: dict[str, Any] = {
            "alpha": factor,
            "split": split_at(leaning, generator.profile),
            "keep_best": keep_best,
            "score_kind": "cosine",
            "max_new_tokens": max_new_tokens,
        }
        answer = (
            generator.answer(question, passages, **options)
            if report is None
            else _reported(generator, question, passages, options, report)
        )
    if as_json:
        write_json(_record(question, answer, generator.model_name, index))
    else:
        _show(answer)


def _reported(
    generator: FocusGenerator, question: str, passages: list[Passage], options: dict[str, Any], file: Path
) -> Answer:
    from focus_rag.answer_report import answer_to_html
    from focus_rag.answer_trace import trace_answer
    from focus_rag.errors import InvalidInputError

    trace = trace_answer(generator, question, passages, **options)
    try:
        file.write_text(answer_to_html(trace, question=question), encoding="utf-8", errors="replace")
    except OSError as error:
        raise InvalidInputError(f"--report: cannot write {file}: {error.strerror or error}.") from error
    return trace.answer


def _index(docs: Path, embedder: str | None, cache: bool) -> PassageIndex:
    with progress() as bar:
        bar.add_task("reading and indexing the documents", total=None)
        from focus_rag.search.documents import list_files
        from focus_rag.search.embedders import SentenceTransformerEmbedder, TfidfEmbedder, best_embedder
        from focus_rag.search.passage_index import PassageIndex, RetrievalSettings

        list_files(docs)  # refuses a wrong folder before anything is loaded
        quiet_libraries()
        if embedder == "tfidf":
            chosen: Embedder = TfidfEmbedder()
        else:
            chosen = best_embedder() if embedder is None else SentenceTransformerEmbedder(embedder)
        return PassageIndex.from_folder(docs, settings=RetrievalSettings(use_cache=cache), embedder=chosen)


def _record(question: str, answer: Answer, model: str, index: PassageIndex) -> dict[str, Any]:
    report = answer.report()
    del report["passages"]
    return {
        "question": question,
        "answer": answer.text,
        "model": model,
        **report,
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage),
        "sources": [{"title": use.passage.title, "text": use.passage.text, **use.report()} for use in answer.passages],
        "searched_with": index.searched_with,
        "left_out": index.left_out,
    }


def _show(answer: Answer) -> None:
    from focus_rag.abstention import abstains

    typer.echo(one_line(answer.text) or "(the model answered with nothing)")
    typer.echo()
    is_stated = not abstains(answer.text)
    if answer.evidence:
        typer.echo("evidence:" if is_stated else "closest sentences:")
    for sentence in answer.evidence:
        typer.echo(f'[{sentence.passage + 1}] "{one_line(sentence.text)}"')
    sure = "" if answer.confidence is None or not is_stated else f"confidence {answer.confidence:.0%}, "
    typer.echo(f"{sure}alpha {answer.alpha:.3g}, noise {answer.noise:.2f}: {one_line(answer.reason)}")
    write_table(
        ["", "score", "attention", "source", "text"],
        [
            [
                str(number),
                "" if use.passage.score is None else f"{round(use.passage.score, 3) + 0.0:.3f}",  # no "-0.000"
                _share(use.attention) if use.used else "left out",
                use.passage.id or "",
                shorten(use.passage.content, _TEXT_WIDTH) if use.used else f"not read: {use.dropped_reason}",
            ]
            for number, use in enumerate(answer.passages, 1)
        ],
        numbers=["", "score", "attention"],
    )


def _share(attention: float | None) -> str:
    return "" if attention is None else f"{attention:.1%}"
