"""The GPU benchmark runs through at toy size on a CPU; what it measures there says nothing and is not looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import intervention_gpu


def test_every_case_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["intervention_gpu", "--device", "cpu", "--toy", "--output", str(output)])
    intervention_gpu.main()
    found = json.loads(output.read_text(encoding="utf-8"))["attention"]["sdpa"]
    toy = intervention_gpu.TOY
    decoded = [f"decode_{toy.decode_tokens}_tokens_batch_{batch}" for batch in toy.batches]
    assert set(found) == {"prefill", "contextual_scoring", *decoded}
    for part in ("prefill", *decoded):
        assert set(intervention_gpu.VARIANTS) <= set(found[part])
        assert found[part]["bare"]["ratio"] == 1.0
    assert found["contextual_scoring"]["out_of_memory"] is False


def test_the_real_sizes_are_those_asked_for() -> None:
    sizes = intervention_gpu.Sizes()
    assert (sizes.prefill, sizes.batches, sizes.scoring) == (8192, (1, 16, 64), 32_768)
