"""Teacher-forced examples: which response tokens count."""

from __future__ import annotations

import pytest

from focus_rag.examples import Example
from focus_rag.fitting.teacher_forcing import teacher_forced
from focus_rag.passages import Passage
from focus_rag.prompting import PromptBuilder
from tests.tiny_tokenizer import tiny_tokenizer

BUILDER = PromptBuilder(tiny_tokenizer())
EXAMPLE = Example("abc?", ("a xyz",), (Passage("xyz"), Passage("uvw")), frozenset({0}))


def counted(response: str, rows: str) -> str:
    one = teacher_forced(BUILDER, EXAMPLE, response, max_tokens=1000, max_rows=99, rows=rows)  # type: ignore[arg-type]
    assert one is not None
    return BUILDER.tokenizer.decode([one.input_ids[row + 1] for row in one.rows])


@pytest.mark.parametrize(
    ("response", "found"),
    [("a xyz", "xyz"), ("ab yw c", "y"), ("uvw", "uvw")],
    ids=["the value alone", "neither the question's nor another passage's", "nothing to be found: all"],
)
def test_rows_that_count(response: str, found: str) -> None:
    assert counted(response, "all") == response
    assert counted(response, "found") == found
