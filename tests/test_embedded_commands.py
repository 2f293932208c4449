"""The commands that train the readers and make their data: what cannot be is refused before anything is begun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from focus_rag.embedded import compact, retrieval, train
from focus_rag.embedded.real_reader import build_pack
from focus_rag.embedded.real_reader import train as real_train

TRAIN = ["--out", "{tmp}/out", "--steps", "1"]
REAL = ["--pack", "{tmp}/pack", "--device", "cpu", "--toy", "--workers", "0", *TRAIN]
PACK = ["--out", "{tmp}/out"]
QUESTIONS = ["--out", "{tmp}/out.jsonl"]
CASES = [
    *((train.main, TRAIN, option, value) for option, value in [
        ("--minutes", "0"), ("--minutes", "nan"), ("--steps", "0"), ("--threads", "0"), ("--seed", "-1"),
        ("--device", "abacus"), ("--device", "meta"), ("--device", "cuda:77"), ("--out", "{tmp}/file"),
    ]),
    *((real_train.main, REAL, option, value) for option, value in [
        ("--minutes", "-1"), ("--budget-minutes", "0"), ("--budget-minutes", "x"), ("--steps", "0"), ("--steps", "1.5"),
        ("--lr-factor", "0"), ("--lr-factor", "nan"), ("--lr-factor", "inf"), ("--batch-tokens", "0"), ("--threads", "-2"),
        ("--workers", "-1"), ("--snapshot-minutes", "0"), ("--device", "abacus"), ("--device", "cuda:77"),
        ("--out", "{tmp}/file"), ("--out", "{tmp}/file/below"), ("--scratch", "{tmp}/file"),
    ]),
    *((build_pack.main, PACK, option, value) for option, value in [
        ("--fit-questions", "-1"), ("--hard", "-1"), ("--out", "{tmp}/file"),
    ]),
    *((retrieval.main, QUESTIONS, option, value) for option, value in [
        ("--questions", "0"), ("--out", "{tmp}/none/out.jsonl"), ("--out", "{tmp}"),
    ]),
]  # fmt: skip


def refused(main: Callable[[list[str]], None], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("main", "given", "option", "value"), CASES)
def test_a_value_that_cannot_be_is_one_line(
    main: Callable[[list[str]], None],
    given: list[str],
    option: str,
    value: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    line = refused(main, [one.format(tmp=tmp_path) for one in [*given, option, value]], capsys)
    assert f"error: argument {option}: " in line
    assert value.format(tmp=tmp_path) in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("main", "given"), [(train.main, TRAIN), (real_train.main, REAL)])
def test_a_gpu_that_is_not_there_is_refused(
    main: Callable[[list[str]], None], given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [one.format(tmp=tmp_path) for one in given]
    assert "'cuda' cannot be used here" in refused(main, [*filled, "--device", "cuda"], capsys)


def test_compacting_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    model = tmp_path / "model"
    model.mkdir()
    save_file({"a": torch.ones(2, 2)}, model / "model.safetensors")
    (tmp_path / "file").touch()
    line = refused(compact.main, ["--model", str(model), "--out", str(tmp_path / "file" / "out")], capsys)
    assert "cannot be made" in line
    line = refused(compact.main, ["--expand", "--model", str(model), "--out", str(tmp_path / "out")], capsys)
    assert "config.json" in line
    assert not (tmp_path / "out").exists()
