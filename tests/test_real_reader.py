"""The reader of real text at toy size: sources, pack, rows, stream, training, checkpoints."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from focus_rag import FocusGenerator, Passage
from focus_rag.abstention import NOT_STATED
from focus_rag.embedded import compact
from focus_rag.embedded.batches import Stage
from focus_rag.embedded.reader_model import ModelShape
from focus_rag.embedded.real_reader import build_pack as build_pack_module
from focus_rag.embedded.real_reader import train
from focus_rag.embedded.real_reader.build_pack import build_pack, held_out_examples
from focus_rag.embedded.real_reader.mix import Mix, RowMaker
from focus_rag.embedded.real_reader.pack import Pack
from focus_rag.embedded.real_reader.sources import Sources
from focus_rag.embedded.real_reader.stream import Stream, StreamSettings, batch_of, draw_pool
from focus_rag.embedded.real_reader.words import replaced
from focus_rag.embedded.real_text import fillings, is_held_out, sentence_ranges
from focus_rag.embedded.rows import Row
from focus_rag.errors import FocusRagError, InvalidInputError
from focus_rag.examples import examples_from_rows
from focus_rag.prompting import PromptBuilder

MIX = Mix(
    passages=(1, 4), long=0.0, read_along=0.0, exchanged=0.0, thinned=0.0, loose=0.0, language_tokens=(20, 60), follow_ups=(0, 2), world=Stage("world", passages=(1, 2), follow_ups=(1, 2)),
    shares={"question": 0.4, "gap": 0.3, "language": 0.1, "world": 0.2},
)  # fmt: skip
SETTINGS = train.ReaderSettings(
    shape=ModelShape(hidden_size=32, intermediate_size=64, layers=2, heads=2, key_heads=1, head_dim=16, max_position_embeddings=1024),
    batch_tokens=1500, pool_batches=3, warmup=2, log_every=1, dev_every=3, dev_rows=4, dev_passages=(1, 3), curriculum=(MIX,),
)  # fmt: skip
STREAM = StreamSettings(seed=0, batch_tokens=1500, pool_batches=3, longest=1024, curriculum=(MIX,))


def articles() -> list[dict[str, object]]:
    """Forty invented articles of two paragraphs, in SQuAD format."""
    found = []
    for i in range(40):
        town, year = f"Lower Falm{i}outh", 1800 + i
        first = (
            f"In {year} the Harbour Board of {town} bought {i + 2} cranes. They stood on the quay. A storm "
            f"broke one of them in {year}."
        )
        second = f"{town} (a port) lies on the River Mora{i}. Ann Cole{i} was its first mayor."
        found.append({
            "title": f"Port {i}",
            "paragraphs": [
                {"context": first, "qas": [{"question": f"When did {town} buy cranes?", "answers": [str(year)]}]},
                {"context": second, "qas": [{"question": f"Who was first mayor of {town}?", "answers": [{"text": f"Ann Cole{i}", "answer_start": 0}]}]},
            ],
        })  # fmt: skip
    return found


def retrieved(number: int, split: str = "train") -> dict[str, object]:
    passages = [
        {"title": f"Hill {number}", "text": f"Hill {number} is {number + 90} metres high.", "is_gold": True},
        {"title": "Dale", "text": f"Dale number {number} has no hill.", "is_gold": False, "has_answer": False},
    ]
    return {
        "question": f"How high is hill {number}?",
        "answers": [f"{number + 90} Metres"],
        "passages": passages,
        "split": split,
    }


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    squad = folder / "articles.json.gz"
    squad.write_bytes(gzip.compress(json.dumps({"data": articles()}).encode()))
    return squad, jsonl(folder / "hills.jsonl", [retrieved(i) for i in range(20)])


@pytest.fixture(scope="module")
def sources(files: tuple[Path, Path]) -> Sources:
    found = Sources()
    found.read_articles(files[0])
    found.read_questions(files[1])
    return found


@pytest.fixture(scope="module")
def folder(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack")
    build_pack(sources, vocab_size=700, world_texts=100).save(path)
    return path


@pytest.fixture(scope="module")
def pack(folder: Path) -> Pack:
    return Pack.load(folder)


def test_sources_keep_held_out_articles_apart(sources: Sources) -> None:
    assert len(sources.questions) == 100
    assert sources.names == ["articles.json.gz", "hills.jsonl"]
    assert not sources.left_out
    for text in sources.texts:
        assert text.held_out == is_held_out(text.title)
    for asked in sources.questions:
        assert asked.answer in sources.texts[asked.gold].text
        if not asked.held_out:
            assert not sources.texts[asked.gold].held_out
            assert not any(sources.texts[i].held_out for i in asked.hard)
    assert 0 < sum(asked.held_out for asked in sources.questions) < 50


def test_a_file_of_another_split_is_refused(tmp_path: Path) -> None:
    for split in ("dev", "test", None):
        rows = [retrieved(0), retrieved(1, split)]  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="Row 2"):
            Sources().read_questions(jsonl(tmp_path / "mixed.jsonl", rows))


def test_the_pack_command_refuses_a_dev_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev = jsonl(tmp_path / "x.dev.jsonl", [retrieved(0, "dev")])
    with pytest.raises(SystemExit) as ended:
        build_pack_module.main(["--questions", str(dev), "--out", str(tmp_path / "pack")])
    assert ended.value.code == 2
    assert "--leave-out" in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()


def test_questions_and_gold_passages_of_evaluation_files_are_left_out(files: tuple[Path, Path], tmp_path: Path) -> None:
    cranes = articles()[3]["paragraphs"][0]  # type: ignore[index]
    dev = [
        retrieved(5, "dev"),
        {
            "question": "WHEN did Lower Falm7outh buy cranes",
            "answers": ["1807"],
            "passages": [{"text": "x", "is_gold": True}],
        },
        {
            "question": "Something else?",
            "answers": ["1803"],
            "passages": [{"text": cranes["context"].upper(), "is_gold": True}],
        },
    ]
    found = Sources()
    found.leave_out(jsonl(tmp_path / "some.dev.jsonl", dev))
    found.read_articles(files[0])
    found.read_questions(files[1])
    asked = {one.question for one in found.questions}
    assert len(asked) == 97
    assert not asked & {
        "How high is hill 5?",
        "When did Lower Falm7outh buy cranes?",
        "When did Lower Falm3outh buy cranes?",
    }
    assert all("Falm3outh bought" not in text.text for text in found.texts)
    assert found.left_out["question of an evaluation file"] == 2
    assert found.left_out["paragraph of an evaluation file"] == 2


def test_evaluation_files_in_other_formats_are_left_out_too(files: tuple[Path, Path], tmp_path: Path) -> None:
    squad = tmp_path / "dev.json"
    squad.write_text(json.dumps({"version": "1.1", "data": articles()[:2]}), encoding="utf-8")
    middle = retrieved(5)
    middle["ctxs"] = [
        {"title": one["title"], "text": one["text"], "hasanswer": one["is_gold"], "isgold": one["is_gold"]}
        for one in middle.pop("passages")  # type: ignore[attr-defined]
    ]
    found = Sources()
    found.leave_out(squad)
    found.leave_out(jsonl(tmp_path / "middle.jsonl", [{**middle, "question": "Something else?"}]))
    found.read_articles(files[0])
    found.read_questions(files[1])
    assert len(found.questions) == 95
    assert not any("Falm0outh" in text.text or "Falm1outh" in text.text for text in found.texts)
    assert "Hill 5 is 95 metres high." not in [text.text for text in found.texts]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "Who?", "passages": None}, "Row 1"),
        ({"question": "Who?", "passages": ["text"]}, "Row 1"),
        ({"question": "Who?", "passages": [{"text": None, "is_gold": True}]}, "Row 1"),
        ({"key": "a", "value": "b"}, "Row 1"),
        ({"question": "Who?", "passages": [{"text": "x", "is_gold": False}]}, "1 questions and 0 gold passages"),
        ({"question": "Who?"}, "1 questions and 0 gold passages"),
        ({"title": "T", "paragraphs": []}, "0 questions"),
    ],
)
def test_an_evaluation_file_that_nothing_is_left_out_by_is_refused(
    row: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=says):
        Sources().leave_out(jsonl(tmp_path / "x.jsonl", [row]))


@pytest.mark.parametrize("answers", ["Paris", None, [3]])
def test_answers_that_are_no_list_of_texts_are_refused(answers: object, tmp_path: Path) -> None:
    rows = [retrieved(0), {**retrieved(1), "answers": answers}]
    with pytest.raises(InvalidInputError, match="Row 2"):
        Sources().read_questions(jsonl(tmp_path / "x.jsonl", rows))


@pytest.mark.parametrize(
    "data", [{"data": [{"title": "T"}]}, {"data": ["T"]}, {"data": [{"title": "T", "paragraphs": [{"context": 3}]}]}]
)
def test_another_format_is_refused(data: object, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="SQuAD"):
        Sources().read_articles(tmp_path / "x.json")


def test_a_pack_needs_questions_on_both_sides() -> None:
    with pytest.raises(InvalidInputError, match="held-out"):
        build_pack(Sources())


def test_a_pack_comes_back_as_it_was(sources: Sources, pack: Pack) -> None:
    for i, text in enumerate(sources.texts):
        assert pack.tokenizer.decode(pack.texts[i]) == text.text
        assert pack.tokenizer.decode(pack.titles[int(pack.title_of[i])]) == f"{text.title}:"
        assert len(pack.sentences[i]) == len(sentence_ranges(text.text))
    for i, asked in enumerate(sources.questions):
        assert pack.tokenizer.decode(pack.answers[i]) == asked.answer
        assert pack.held_questions[i] == asked.held_out
        assert asked.gold not in pack.hard[i]
    assert pack.about["questions"]["hills.jsonl"] == sum(
        not one.held_out and one.source == 1 for one in sources.questions
    )


def test_stored_spans_are_the_names_and_numbers(sources: Sources, pack: Pack) -> None:
    found = wanted = 0
    for i, text in enumerate(sources.texts):
        sentences = [text.text[start:end] for start, end in sentence_ranges(text.text)]
        names = {sentence[start:end] for sentence in sentences for start, end in fillings(sentence)}
        spans = pack.fillings[i].reshape(-1, 2).tolist()
        assert {pack.tokenizer.decode(pack.texts[i][start:end]) for start, end in spans} <= names
        found, wanted = found + len(spans), wanted + len(names)
    assert found > 0.5 * wanted


def test_a_pack_that_is_too_large_or_missing_is_refused(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("focus_rag.embedded.real_reader.pack.LARGEST_BYTES", 1000)
    with pytest.raises(InvalidInputError, match="MiB"):
        pack.save(tmp_path)
    with pytest.raises(InvalidInputError, match="build_pack"):
        Pack.load(tmp_path / "nothing")


def test_a_pack_that_was_cut_short_or_changed_is_none(pack: Pack, tmp_path: Path) -> None:
    pack.save(tmp_path)
    assert Pack.load(tmp_path).texts.values.tolist() == pack.texts.values.tolist()
    tokenizer = tmp_path / "tokenizer.json"
    text = tokenizer.read_text(encoding="utf-8")
    tokenizer.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"not those.*build_pack"):
        Pack.load(tmp_path)
    pack.save(tmp_path)
    tokenizer.unlink()
    tokenizer.mkdir()  # the next pack cannot be written to its end
    with pytest.raises(Exception):  # noqa: B017, PT011 - the tokenizers library has no type of its own
        pack.save(tmp_path)
    tokenizer.rmdir()
    tokenizer.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match="build_pack"):
        Pack.load(tmp_path)


def turns(pack: Pack, row: Row) -> list[str]:
    """What the model is to say, turn by turn."""
    said = [token if weight else -1 for token, weight in zip(row.tokens, row.weights, strict=True)]
    parts, part = [], []
    for token in [*said, -1]:
        if token >= 0 and token != pack.tokenizer.eos_token_id:
            part.append(token)
        elif part:
            parts.append(pack.tokenizer.decode(part))
            part = []
    return parts


def test_a_row_is_the_prompt_of_the_library(pack: Pack) -> None:
    maker, builder, rng = RowMaker(pack), PromptBuilder(pack.tokenizer), random.Random(0)
    for _ in range(50):
        shown = rng.sample(range(len(pack.texts)), 3)
        question, answer = pack.questions[shown[0] % len(pack.questions)].tolist(), pack.answers[0].tolist()
        for titled in (0.0, 1.0):
            contents = maker._contents(rng, MIX.model_copy(update={"titled": titled}), shown)
            row = maker._conversation(shown, contents, [(question, answer)], "question")
            passages = [
                Passage(
                    pack.tokenizer.decode(pack.texts[i]),
                    title=pack.tokenizer.decode(pack.titles[int(pack.title_of[i])])[:-1] if titled else None,
                )
                for i in shown
            ]
            built = builder.from_question(pack.tokenizer.decode(question), passages, max_tokens=4096, drop_order=[])
            assert row.first_answer is not None
            assert row.tokens[: row.first_answer[0]] == list(built.input_ids)
            assert row.tokens[row.first_answer[0] : row.first_answer[1]] == [*answer, pack.tokenizer.eos_token_id]


def test_questions_have_their_paragraph_or_say_that_it_is_missing(pack: Pack) -> None:
    maker, rng = RowMaker(pack), random.Random(1)
    places, missing = set(), 0
    for _ in range(300):
        row = maker.question_row(
            rng, MIX.model_copy(update={"missing": 0.3, "passages": (3, 3), "titled": 0.0, "follow_ups": (0, 0)})
        )
        text = pack.tokenizer.decode(row.tokens)
        (answer,) = turns(pack, row)
        passages = text.split("<|end|>")[0].split("\n\n[")[1:]
        if answer == NOT_STATED:
            missing += 1
            question = text.split("Question: ")[1].split("\n")[0]
            index = next(i for i in range(len(pack.questions)) if pack.tokenizer.decode(pack.questions[i]) == question)
            assert pack.tokenizer.decode(pack.texts[int(pack.gold[index])]) not in text
        else:
            holders = [i for i, passage in enumerate(passages) if answer in passage]
            assert len(holders) >= 1
            places.add(holders[0])
    assert places == {0, 1, 2}
    assert 50 < missing < 140


def test_further_questions_are_on_paragraphs_shown(pack: Pack) -> None:
    maker, rng = RowMaker(pack), random.Random(2)
    mix = MIX.model_copy(update={"missing": 0.0, "follow_ups": (1, 3), "passages": (4, 4)})
    more = 0
    for _ in range(100):
        row = maker.question_row(rng, mix)
        first = pack.tokenizer.decode(row.tokens).split("<|end|>")[0]
        answers = turns(pack, row)
        assert all(answer in first for answer in answers)
        more += len(answers) > 1
    assert more > 50


def test_gaps_can_be_filled_from_the_passages(pack: Pack) -> None:
    maker, rng = RowMaker(pack), random.Random(3)
    removed = follows = 0
    for _ in range(300):
        row = maker.row(rng, "gap", MIX.model_copy(update={"titled": 0.0}))
        parts = pack.tokenizer.decode(row.tokens).split("<|end|>")
        passages = " ".join(parts[0].split("\n\n[")[1:])
        question = parts[0].split("Question: ")[1].split("\n")[0]
        answer = turns(pack, row)[0]
        assert answer in passages
        if question.startswith("Fill the gap: "):
            sentence = question.removeprefix("Fill the gap: ").replace(" ___", f" {answer}", 1)
            removed += sentence not in passages
        else:
            follows += 1
            assert f"{question.removeprefix('Which sentence follows this one: ')} {answer}" in passages
    assert removed > 0
    assert follows > 10


def test_exchanged_answers_stand_in_the_passage_in_place_of_the_old_ones(pack: Pack) -> None:
    maker, rng = RowMaker(pack), random.Random(5)
    mix = MIX.model_copy(update={"missing": 0.0, "exchanged": 1.0, "follow_ups": (0, 3), "titled": 0.0})
    known = {(one.tobytes(), pack.answers[i].tobytes()) for i, one in enumerate(pack.questions)}
    exchanged = 0
    for _ in range(200):
        row = maker.question_row(rng, mix)
        text = pack.tokenizer.decode(row.tokens)
        assert all(answer in text.split("<|end|>")[0] for answer in turns(pack, row))
        assert row.first_answer is not None
        question = pack.tokenizer.encode(" " + text.split("Question: ")[1].split("\n")[0], add_special_tokens=False)
        answer = row.tokens[row.first_answer[0] : row.first_answer[1] - 1]
        exchanged += (np.array(question, "uint16").tobytes(), np.array(answer, "uint16").tobytes()) not in known
    assert exchanged > 20


def test_an_answer_that_cannot_be_exchanged_is_kept(tmp_path: Path) -> None:
    """In brackets or quotes an answer is other tokens than by itself."""
    rows = [
        {
            "question": f"When was mill {number} built?",
            "answers": [str(1800 + number)],
            "passages": [{"text": f"Mill {number} ({1800 + number}) is of stone.", "title": "", "is_gold": True}],
            "split": "train",
        }
        for number in range(40)
    ]
    found = Sources()
    found.read_questions(jsonl(tmp_path / "mills.jsonl", rows))
    maker, rng = RowMaker(build_pack(found, vocab_size=700, world_texts=100)), random.Random(0)
    mix = MIX.model_copy(update={"missing": 0.0, "exchanged": 1.0, "follow_ups": (0, 0)})
    for _ in range(40):
        row = maker.question_row(rng, mix)
        (answer,) = turns(maker.pack, row)
        assert f"({answer})" in maker.pack.tokenizer.decode(row.tokens)


def test_loose_gaps_ask_for_a_word_of_a_passage_with_words_of_its_sentence(pack: Pack) -> None:
    maker, rng = RowMaker(pack), random.Random(6)
    mix = MIX.model_copy(
        update={"loose": 1.0, "next_sentence": 0.0, "follow_ups": (0, 0), "titled": 0.0, "passages": (1, 1)}
    )
    asked = 0
    for _ in range(100):
        first, answer = pack.tokenizer.decode(maker.row(rng, "gap", mix).tokens).split("<|assistant|>")
        question = first.split("Question: ")[1].split("\n")[0]
        if not question.endswith("?"):
            continue
        asked += 1
        passage = first.split("\n\n[1] ")[1]
        assert answer.removesuffix("<|end|>").strip() in passage
        words = question.removesuffix("?").split()
        assert question.startswith(("When", "How", "In", "What", "Who", "Where", "Which"))
        assert sum(word in passage for word in words) >= len(words) - 5
    assert asked > 30


@pytest.mark.parametrize("loose", [0.0, 1.0])
def test_a_name_said_twice_is_asked_for_without_one_of_its_sentences(pack: Pack, loose: float) -> None:
    maker, rng = RowMaker(pack), random.Random(8)
    mix = MIX.model_copy(
        update={
            "loose": loose,
            "removed": 1.0,
            "next_sentence": 0.0,
            "follow_ups": (0, 0),
            "titled": 0.0,
            "passages": (1, 1),
        }
    )
    removed = 0
    for _ in range(100):
        row = maker.row(rng, "gap", mix)
        passage = pack.tokenizer.decode(row.tokens).split("\n\n[1] ")[1].split("\n")[0]
        (answer,) = turns(pack, row)
        assert answer in passage
        if "Harbour Board" in passage or "A storm" in passage:  # the first paragraphs, which tell their year twice
            removed += ("Harbour Board" in passage) != ("A storm" in passage)
            assert answer.isdigit()
    assert removed > 20


def test_words_are_thinned_and_shaken_as_wholes(pack: Pack) -> None:
    words, rng = RowMaker(pack).words, random.Random(0)
    text = " ".join(pack.tokenizer.decode(pack.texts[0]).replace(",", "").replace(".", "").split()[:12])
    tokens = pack.tokenizer.encode(" " + text, add_special_tokens=False)
    assert words.thinned(rng, tokens, 0.0) == [token for word in words.split(tokens) for token in word]
    assert words.thinned(rng, tokens, 1.0) == tokens
    kept = pack.tokenizer.decode(words.thinned(rng, tokens, 0.5)).split()
    assert 0 < len(kept) < 12
    assert sorted(pack.tokenizer.decode(words.shaken(rng, tokens)).split()) == sorted(
        pack.tokenizer.decode(words.thinned(rng, tokens, 0.0)).split()
    )
    assert replaced([1, 2, 3, 1, 2], [1, 2], [9]) == [9, 3, 9]


def test_training_never_sees_what_is_held_out(pack: Pack) -> None:
    maker, rng = RowMaker(pack), random.Random(4)
    held = [pack.texts[i].tobytes() for i in np.flatnonzero(pack.held_texts)]
    held += [pack.questions[i].tobytes() for i in np.flatnonzero(pack.held_questions)]
    assert held
    for kind in ("question", "gap", "language"):
        for _ in range(150):
            tokens = np.array(maker.row(rng, kind, MIX).tokens, dtype="uint16").tobytes()
            assert not any(one in tokens for one in held)
    dev = np.array(RowMaker(pack, held_out=True).question_row(rng, MIX).tokens, dtype="uint16").tobytes()
    assert any(one in dev for one in held)


def test_batches_point_at_the_tokens_that_weigh() -> None:
    rows = [
        Row([1, 5, 6, 7], [0.0, 0.0, 1.0, 0.5], (2, 4)),
        Row([1, 8, 9], [0.0, 2.0, 2.0], (1, 3), "gap"),
        Row([1, 4], [0.0, 1.0], (1, 2)),
    ]
    batch = batch_of(rows, pad=0)
    assert batch.ids.tolist() == [[1, 5, 6, 7], [1, 8, 9, 0], [1, 4, 0, 0]]
    assert batch.ids.reshape(-1)[batch.at + 1].tolist() == batch.targets.tolist() == [6, 7, 8, 9, 4]
    assert batch.weights.tolist() == [1.0, 0.5, 2.0, 2.0, 1.0]
    assert batch.first_answers.tolist() == [[0, 2], [4, 5]]
    assert (batch.total, batch.filled) == (6.5, 9)
    right = torch.tensor([True, True, False, False, False])
    assert train.exact_share(batch, right) == 0.5


def test_pools_hold_their_mix_and_little_padding(pack: Pack) -> None:
    maker = RowMaker(pack, longest=1024)
    settings = StreamSettings(0, 8000, 4, 1024, (MIX,))
    batches = [batch for pool in range(4) for batch in draw_pool(maker, settings, pool)]
    filled, padded = sum(batch.filled for batch in batches), sum(batch.ids.size for batch in batches)
    assert filled / padded > 0.8
    assert all(batch.ids.size <= 8000 for batch in batches)
    assert sum(batch.total for batch in batches) == pytest.approx(
        sum(float(batch.weights.sum()) for batch in batches), rel=1e-5
    )


def test_the_curriculum_goes_by_tokens() -> None:
    first, last = Mix(name="a", tokens=9000), Mix(name="b")
    settings = StreamSettings(0, 1000, 3, 512, (first, last))
    assert [settings.mix_of(i).name for i in range(5)] == ["a", "a", "a", "b", "b"]


def test_the_stream_goes_on_where_it_stopped(folder: Path) -> None:
    whole = Stream(folder, STREAM)
    batches, places = [], []
    for _ in range(9):
        batches.append(whole.next())
        places.append((whole.pool, whole.batch))
    assert places[-1][0] >= 1
    for done in (1, 4, 7):
        again = Stream(folder, STREAM, *places[done])
        for batch in batches[done + 1 :]:
            assert np.array_equal(again.next().ids, batch.ids)


def test_processes_draw_the_same_stream(folder: Path) -> None:
    alone, many = Stream(folder, STREAM), Stream(folder, STREAM, workers=1)
    try:
        for _ in range(6):
            assert np.array_equal(alone.next().ids, many.next().ids)
    finally:
        many.close()


def test_processes_that_draw_end_with_the_one_they_draw_for(folder: Path) -> None:
    code = (
        "import multiprocessing, os, sys\n"
        "from pathlib import Path\n"
        "from tests.test_real_reader import STREAM, Stream\n"
        "if __name__ == '__main__':\n"
        f"    stream = Stream(Path({str(folder)!r}), STREAM, workers=1)\n"
        "    stream.next()\n"
        "    print('drawn', flush=True)\n"
        "    os._exit(0)\n"
    )
    # The end of the output is only there when the process that draws, which inherits it, is gone too.
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=60, cwd=Path(__file__).parents[1]
    )  # fmt: skip
    assert done.stdout == "drawn\n"


def test_a_run_that_is_refused_lets_its_processes_go(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Stream] = []
    monkeypatch.setattr(Stream, "close", lambda stream: closed.append(stream))
    monkeypatch.setattr(train.ReaderTrainer, "_require_finite", lambda *_: 1 / 0)
    given = ["--pack", str(folder), "--out", str(tmp_path / "out"), "--device", "cpu", "--toy", "--workers", "0"]
    with pytest.raises(ZeroDivisionError):
        train.main([*given, "--batch-tokens", "1500", "--steps", "1"])
    assert len(closed) == 1


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_in_parts_with_its_scratch_is_one_run(folder: Path, tmp_path: Path) -> None:
    whole = train.ReaderTrainer(folder, tmp_path / "whole", SETTINGS)
    whole.rate = lambda done: 1.0  # type: ignore[method-assign]
    whole.run(steps=5)
    for part, steps in enumerate((2, 3)):
        trainer = train.ReaderTrainer(
            folder, tmp_path / "parts", SETTINGS, scratch=tmp_path / "scratch", resume=part > 0
        )
        trainer.rate = lambda done: 1.0  # type: ignore[method-assign]
        trainer.run(steps=steps)
    assert trainer.restored
    assert vars(trainer.progress) == {**vars(whole.progress), "seconds": trainer.progress.seconds, "run": ANY}
    saved, wanted = trainer.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(saved[name], wanted[name]) for name in wanted)


def test_without_scratch_a_run_goes_on_from_the_checkpoint_and_warms_up_again(folder: Path, tmp_path: Path) -> None:
    first = train.ReaderTrainer(folder, tmp_path, SETTINGS)
    assert first.rate(0.0) == 0.5
    first.run(steps=4)
    assert first.rate(0.0) == 1.0
    again = train.ReaderTrainer(folder, tmp_path, SETTINGS, resume=True)
    assert not again.restored
    assert (again.progress.step, again.progress.pool, again.progress.batch) == (
        4,
        first.progress.pool,
        first.progress.batch,
    )
    assert again.rate(0.0) == 0.5
    assert np.array_equal(again.stream.next().ids, first.stream.next().ids)
    for name, one in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], one.to(torch.bfloat16).float())
    kinds = [line["kind"] for line in lines(tmp_path)]
    assert kinds.count("train") == 4
    assert kinds.count("dev") == 2
    dev = next(line for line in lines(tmp_path) if line["kind"] == "dev")
    assert dev["1 passages"]["n"] == 4  # type: ignore[index]


def test_full_weights_of_another_training_are_not_taken(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        train.ReaderTrainer(folder, tmp_path / name, SETTINGS, scratch=tmp_path / f"scratch {name}").run(steps=1)
    resumed = [
        train.ReaderTrainer(folder, tmp_path / "two", SETTINGS, scratch=tmp_path / f"scratch {name}", resume=True)
        for name in ("one", "two")
    ]
    assert [trainer.restored for trainer in resumed] == [False, True]
    assert resumed[0].progress.warm_from == 1


@pytest.mark.parametrize("name", ["batch_tokens", "pool_batches", "curriculum"])
def test_another_order_of_batches_is_not_gone_on_with(name: str, folder: Path, tmp_path: Path) -> None:
    train.ReaderTrainer(folder, tmp_path, SETTINGS).checkpoint()
    changed = {"batch_tokens": 1400, "pool_batches": 2, "curriculum": (MIX, MIX)}[name]
    other = SETTINGS.model_copy(update={name: changed})
    with pytest.raises(InvalidInputError, match=f"another {name}"):
        train.ReaderTrainer(folder, tmp_path, other, resume=True)
    file = tmp_path / "model" / "progress.json"
    older = json.loads(file.read_text(encoding="utf-8"))
    for unsaid in ("batch_tokens", "pool_batches", "curriculum", "run"):
        del older[unsaid]
    file.write_text(json.dumps(older), encoding="utf-8")
    train.ReaderTrainer(folder, tmp_path, other, resume=True)


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_the_checkpoint_is_replaced_loses_none(
    renames: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = train.ReaderTrainer(folder, tmp_path, SETTINGS)
    trainer.checkpoint()
    trainer.progress.step, done, rename = 7, [], Path.rename

    def killed(path: Path, to: Path) -> Path:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(path)
        return rename(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.checkpoint()
    assert train.ReaderTrainer(folder, tmp_path, SETTINGS, resume=True).progress.step == 7 * renames
    # The new one is incomplete: the old one comes back.
    for left in ("model.new", "model.old"):
        shutil.rmtree(tmp_path / left, ignore_errors=True)
    (tmp_path / "model").rename(tmp_path / "model.old")
    (tmp_path / "model.new").mkdir()
    again = train.ReaderTrainer(folder, tmp_path, SETTINGS, resume=True)
    assert again.progress.step == 7 * renames
    again.checkpoint()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_rate_falls_to_nothing_over_the_whole_budget(folder: Path, tmp_path: Path) -> None:
    trainer = train.ReaderTrainer(folder, tmp_path, SETTINGS)
    trainer.progress.step = 100
    assert trainer.rate(0.5) == 1.0
    assert trainer.rate(0.8) == pytest.approx(0.5)
    assert trainer.rate(1.0) == 0.0
    trainer.progress.seconds = 60 * SETTINGS.budget_minutes
    trainer.run(steps=5)
    assert trainer.progress.step == 100


def test_the_budget_counts_a_run_from_its_start_as_its_minutes_do(folder: Path, tmp_path: Path) -> None:
    trainer = train.ReaderTrainer(folder, tmp_path, SETTINGS)
    trainer.run(steps=1, began=time.monotonic() - 60 * SETTINGS.budget_minutes)
    assert trainer.progress.step == 0
    assert trainer.progress.seconds >= 60 * SETTINGS.budget_minutes


def test_a_run_ends_with_its_minutes(folder: Path, tmp_path: Path) -> None:
    trainer = train.ReaderTrainer(folder, tmp_path, SETTINGS)
    trainer.run(minutes=1e-9)
    assert trainer.progress.step == 0
    assert (tmp_path / "model" / "progress.json").exists()


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    train.ReaderTrainer(folder, tmp_path, SETTINGS).run(steps=1)
    for log_every in (1, 100):  # met in the log, or at the end
        trainer = train.ReaderTrainer(
            folder, tmp_path, SETTINGS.model_copy(update={"log_every": log_every}), resume=True
        )
        with torch.no_grad():
            trainer.model.model.norm.weight.fill_(float("nan"))
        with pytest.raises(FocusRagError, match="--lr-factor"):
            trainer.run(steps=1)
        assert json.loads((tmp_path / "model" / "progress.json").read_text(encoding="utf-8"))["step"] == 1


def test_the_command_trains_resumes_and_says_what_is_wrong(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--pack",
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--toy",
        "--workers",
        "0",
        "--batch-tokens",
        "1500",
        "--steps",
        "1",
    ]
    train.main(given)
    train.main([*given, "--resume", "--budget-minutes", "5", "--minutes", "5"])
    assert [line["kind"] for line in lines(tmp_path / "out")] == ["start", "dev"] * 2
    for wrong in (given, [*given[:2], "--out", str(tmp_path / "none"), *given[4:], "--resume"], given[:-2]):
        with pytest.raises(SystemExit) as ended:
            train.main(wrong)
        assert ended.value.code == 2
    assert "already" in capsys.readouterr().err


def test_the_loss_falls(folder: Path, tmp_path: Path) -> None:
    trainer = train.ReaderTrainer(folder, tmp_path, SETTINGS)
    trainer.run(steps=30)
    losses = [line["loss"] for line in lines(tmp_path) if line["kind"] == "train"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])  # type: ignore[arg-type]


def test_a_checkpoint_loads_in_transformers_and_answers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(train, "LARGEST_FILE", "30KB")
    trainer = train.ReaderTrainer(folder, tmp_path, SETTINGS)
    trainer.run(steps=1)
    model = tmp_path / "model"
    weights = list(model.glob("*.safetensors"))
    assert len(weights) > 1
    # The embeddings are one tensor, and a tensor is never cut.
    largest = 2 * trainer.model.model.embed_tokens.weight.numel()
    assert max(path.stat().st_size for path in weights) <= max(30_000, largest) + 4000
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert torch.equal(loaded.state_dict()["model.norm.weight"], trainer.model.model.norm.weight.to(torch.bfloat16))
    generator = FocusGenerator.from_pretrained(model)
    answer = generator.answer("Who was mayor?", [Passage("Ann Cole was mayor.", title="Port")], max_new_tokens=4)
    assert answer.usage.completion_tokens >= 1


def test_the_settings_of_the_recipe_fit_a_checkpoint() -> None:
    shape = train.ReaderSettings().shape
    with torch.device("meta"):
        from transformers import LlamaConfig, LlamaForCausalLM

        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size, num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads, head_dim=shape.head_dim, tie_word_embeddings=True, attention_bias=True,
            )
        )  # fmt: skip
    sizes = [one.numel() for one in model.parameters()]
    assert 20_000_000 <= sum(sizes) <= 60_000_000
    assert 2 * sum(sizes) + 2_000_000 <= train.LARGEST_MODEL
    assert 2 * max(sizes) <= 15_000_000


def test_a_model_that_is_too_large_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LARGEST_MODEL", 2_010_000)
    with pytest.raises(InvalidInputError, match="MB"):
        train.ReaderTrainer(folder, tmp_path, SETTINGS)


def test_resuming_nothing_overwriting_and_another_training_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nothing to resume"):
        train.ReaderTrainer(folder, tmp_path, SETTINGS, resume=True)
    train.ReaderTrainer(folder, tmp_path, SETTINGS).checkpoint()
    with pytest.raises(InvalidInputError, match="already"):
        train.ReaderTrainer(folder, tmp_path, SETTINGS)
    with pytest.raises(InvalidInputError, match="another seed"):
        train.ReaderTrainer(folder, tmp_path, SETTINGS.model_copy(update={"seed": 9}), resume=True)


def test_a_run_begins_from_a_saved_model_and_leaves_the_copying_out(folder: Path, tmp_path: Path) -> None:
    first = train.ReaderTrainer(folder, tmp_path / "one", SETTINGS)
    first.run(steps=2)
    saved = tmp_path / "one" / "model"
    settings = SETTINGS.model_copy(update={"curriculum": (Mix(name="copying", tokens=100, shares={"world": 1.0}), MIX)})
    second = train.ReaderTrainer(folder, tmp_path / "two", settings, start=saved)
    assert second.progress.step == 0
    assert second.settings.curriculum == (MIX,)
    for name, one in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], one.bfloat16().float())
    second.run(steps=1)
    assert (tmp_path / "two" / "model" / "progress.json").exists()
    assert train.ReaderTrainer(folder, tmp_path / "two", settings, resume=True).settings.curriculum == (MIX,)
    other = settings.model_copy(update={"shape": settings.shape.model_copy(update={"layers": 1})})
    with pytest.raises(InvalidInputError, match="another shape"):
        train.ReaderTrainer(folder, tmp_path / "three", other, start=saved)
    with pytest.raises(InvalidInputError, match="no saved reader"):
        train.ReaderTrainer(folder, tmp_path / "three", settings, start=folder)


def test_a_run_begins_only_from_a_model_with_the_tokens_of_its_pack(
    sources: Sources, folder: Path, pack: Pack, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    build_pack(sources, vocab_size=len(pack.tokenizer), world_texts=300).save(other)
    assert Pack.load(other).tokenizer.get_vocab() != pack.tokenizer.get_vocab()
    first = train.ReaderTrainer(folder, tmp_path / "one", SETTINGS)
    first.checkpoint()
    with pytest.raises(InvalidInputError, match="other tokens than the pack"):
        train.ReaderTrainer(other, tmp_path / "two", SETTINGS, start=tmp_path / "one" / "model")


def test_a_pack_takes_the_tokenizer_of_the_reader_that_is_trained_further(
    files: tuple[Path, Path], folder: Path, pack: Pack, tmp_path: Path
) -> None:
    train.ReaderTrainer(folder, tmp_path / "one", SETTINGS).checkpoint()
    saved = tmp_path / "one" / "model"
    given = ["--squad", str(files[0]), "--questions", str(files[1]), "--out", str(tmp_path / "pack")]
    build_pack_module.main([*given, "--tokenizer", str(saved)])
    again = Pack.load(tmp_path / "pack")
    assert again.tokenizer.get_vocab() == pack.tokenizer.get_vocab()
    assert again.texts.values.tolist() == pack.texts.values.tolist()
    train.ReaderTrainer(tmp_path / "pack", tmp_path / "two", SETTINGS, start=saved)
    with pytest.raises(SystemExit):
        build_pack_module.main([*given, "--tokenizer", str(tmp_path)])


def test_the_compact_form_is_half_as_large_and_close(folder: Path, tmp_path: Path) -> None:
    trainer = train.ReaderTrainer(folder, tmp_path / "run", SETTINGS)
    trainer.run(steps=2)
    compact.compact(tmp_path / "run" / "model", tmp_path / "small")
    compact.expand(tmp_path / "small", tmp_path / "again" / "model")
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / name).glob("*.safetensors")) for name in ("run/model", "small")
    ]
    assert sizes[1] < 0.65 * sizes[0]
    back = train.ReaderTrainer(folder, tmp_path / "again", SETTINGS, resume=True)
    assert back.progress.step == 2
    for name, one in trainer.model.state_dict().items():
        error = (back.model.state_dict()[name] - one).abs().max()
        assert error <= 0.01 * one.abs().max()
    with pytest.raises(InvalidInputError, match="exists"):
        compact.compact(tmp_path / "run" / "model", tmp_path / "small")


def test_questions_for_fitting_are_on_held_out_articles(sources: Sources) -> None:
    rows = held_out_examples(sources, 100, passages=4)
    given = examples_from_rows(rows)
    assert given.examples
    assert not given.skipped
    titles = {passage.title for example in given.examples for passage in example.passages}
    assert all(is_held_out(str(title)) for title in titles)
