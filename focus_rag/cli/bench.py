"""`focus-rag bench`: what the intervention costs, beside the bare model and installed rival packages."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from focus_rag.cli.loading import DeviceOption, JsonOption, ModelOption, ProfileOption, load_generator
from focus_rag.cli.output import progress, write_json, write_table

_COLUMNS = {
    "first_token_seconds": ("first token (s)", "{:.3f}"),
    "tokens_per_second": ("tokens/s", "{:.1f}"),
    "seconds": ("answer (s)", "{:.3f}"),
    "peak_memory_mib": ("memory (MiB)", "{:.0f}"),
}


def command(
    model: ModelOption = None,
    profile: ProfileOption = None,
    passages: Annotated[int, typer.Option("--passages", help="Passages per question.")] = 20,
    questions: Annotated[int, typer.Option("--questions", help="Questions to take the median over.")] = 5,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")] = 32,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure speed and memory of every method, and of rival packages where they are installed and run.

    Example: focus-rag bench --model Qwen/Qwen2.5-7B-Instruct --profile ./profile --json
    """
    from focus_rag.errors import InvalidInputError

    if min(passages, questions, max_new_tokens) < 1:
        raise InvalidInputError("--passages, --questions and --max-new-tokens must be at least 1.")
    generator = load_generator(model, profile, device)
    with progress() as bar:
        task = bar.add_task("", total=None)

        def report(label: str, done: int, total: int) -> None:
            bar.update(task, description=label, completed=done, total=total)

        from focus_rag.evaluation.bench import bench

        rows = bench(generator, passages=passages, questions=questions, max_new_tokens=max_new_tokens, progress=report)
    if as_json:
        write_json({"model": generator.model_name, "passages": passages, "questions": questions, "methods": rows})
    else:
        titles = [title for title, _ in _COLUMNS.values()]
        write_table(["method", *titles, "note"], [_cells(name, row) for name, row in rows.items()], numbers=titles)


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    values = [form.format(row[key]) if key in row else "" for key, (_, form) in _COLUMNS.items()]
    return [name, *values, str(row.get("note", ""))]
