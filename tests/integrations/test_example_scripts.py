"""The examples run as they stand, offline, and answer no fewer questions after the change than before."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def printed(name: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", ["langchain_before_after", "llama_index_before_after"])
def test_only_the_line_of_the_model_changes_and_more_is_right(name: str) -> None:
    before, after, *rest = (int(count) for count in re.findall(r"\d+", printed(name).strip().splitlines()[-1])[1:])
    assert 0 < before < after <= min(rest, default=35)


@pytest.mark.parametrize("name", ["langchain_faiss", "llama_index_faiss"])
def test_a_vector_store_of_faiss_hands_on_its_distances(name: str) -> None:
    text = printed(name)
    assert "split softmax on the passage best by score and shared words" in text and "distance 0." in text


def test_every_example_is_run_here() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {
        "langchain_before_after", "langchain_faiss", "llama_index_before_after", "llama_index_faiss",
    }  # fmt: skip
