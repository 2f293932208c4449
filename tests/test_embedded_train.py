"""The recipe: rows of tokens, the layout, repeatability and resuming."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
import torch

from focus_rag.embedded import train, world
from focus_rag.embedded.batches import BatchStream, Stage, one_row
from focus_rag.embedded.optimizers import STATE, save_state, state_said
from focus_rag.embedded.questions import question_row
from focus_rag.embedded.reader_model import ModelShape, new_model
from focus_rag.embedded.real_text import cloze, load_real_text
from focus_rag.embedded.rows import LAYOUT, Conversation
from focus_rag.embedded.short_attention import attend
from focus_rag.embedded.tokenizer import load_tokenizer
from focus_rag.errors import InvalidInputError
from focus_rag.passages import Passage
from focus_rag.prompting import PromptBuilder

SHAPE = ModelShape(vocab_size=600, hidden_size=32, intermediate_size=64, layers=2, heads=2, key_heads=1, head_dim=16)
SETTINGS = train.TrainSettings(shape=SHAPE, tokenizer_texts=200, warmup=2)
STAGES = (Stage("copying", copying=1.0, idle=0.0, tokens=400, steps=2), Stage("questions", idle=0.2, tokens=800))


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return train.new_tokenizer(SETTINGS, None)


@pytest.fixture(scope="module")
def real_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = (
        "In 1931 the Harbour Board of Lower Falmouth bought two cranes. They stood on the quay for 40 years. "
        "A storm then broke one of them."
    )
    articles = [
        {"title": f"Article {i}", "paragraphs": [{"context": text}, {"context": text + " It was sold."}]}
        for i in range(40)
    ]
    path = tmp_path_factory.mktemp("real") / "real.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"data": articles}).encode()))
    return path


def test_tokens_of_an_answer_are_those_of_the_word_in_a_sentence(tokenizer) -> None:  # type: ignore[no-untyped-def]
    alone = tokenizer("Drelmouth", add_special_tokens=False)["input_ids"]
    inside = tokenizer("They left for Drelmouth", add_special_tokens=False)["input_ids"]
    assert inside[-len(alone) :] == alone


def test_text_survives_encoding(tokenizer) -> None:  # type: ignore[no-untyped-def]
    text = "[1] Größe: 4,117 crowns\n\nthe firm's 12.5 — ok?"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_training_prompt_is_the_prompt_of_the_library(tokenizer) -> None:  # type: ignore[no-untyped-def]
    passages = [Passage("It lies on the Mora.", title="Veldham"), Passage("Nothing else is known.")]
    question = "Which river flows through Veldham?"
    built = PromptBuilder(tokenizer).from_question(question, passages, max_tokens=4096, drop_order=[])
    conversation = Conversation()
    content, _ = LAYOUT.user_content(question, [passage.content for passage in passages])
    # Spelled out: the shipped weights know this layout, whatever the library's default becomes.
    assert content == (
        "Answer the question from the passages. If they do not hold the answer, say: not stated.\n"
        "Question: Which river flows through Veldham?\n\n[1] Veldham: It lies on the Mora.\n\n[2] Nothing else is "
        "known.\n\n"
        "Question: Which river flows through Veldham?"
    )
    conversation.user(content)
    conversation.assistant("Mora")
    row = conversation.row(tokenizer)
    assert row.first_answer is not None
    assert row.tokens[: row.first_answer[0]] == list(built.input_ids)
    answer = row.tokens[row.first_answer[0] : row.first_answer[1]]
    assert tokenizer.decode(answer[:-1]) == "Mora"
    assert answer[-1] == tokenizer.eos_token_id
    assert [i for i, weight in enumerate(row.weights) if weight] == list(range(*row.first_answer))


def test_what_follows_from_the_question_weighs_less_than_what_must_be_found(tokenizer) -> None:  # type: ignore[no-untyped-def]
    conversation = Conversation()
    conversation.user("Who is the mayor of Veldham?")
    conversation.assistant("Ann Cole.", lead="The mayor of Veldham is")
    row = conversation.row(tokenizer)
    assert row.first_answer is not None
    answer = slice(*row.first_answer)
    assert tokenizer.decode(row.tokens[answer][:-1]) == "The mayor of Veldham is Ann Cole."
    lead = len(tokenizer("The mayor of Veldham is", add_special_tokens=False)["input_ids"])
    weights = row.weights[answer]
    assert max(weights[:lead]) < min(weights[lead:])
    assert weights[lead] > max(weights[lead + 1 :])


def test_what_no_passage_states_is_asked_for_and_answered_so(tokenizer) -> None:  # type: ignore[no-untyped-def]
    told = world.Telling(rich=0.0)
    common = {"n_passages": 3, "n_hard": 1, "n_follow_ups": 40}
    missing = question_row(random.Random(1), tokenizer, "train", told, **common, missing=True)
    assert missing.first_answer is not None
    first = tokenizer.decode(missing.tokens[slice(*missing.first_answer)][:-1])
    assert first.endswith(" is not stated.")
    assert first.removesuffix(" not stated.") in tokenizer.decode(missing.tokens)
    shares = []
    for unstated in (0.0, 0.5, 1.0):
        row = question_row(random.Random(2), tokenizer, "train", told, **common, missing=False, unstated=unstated)
        turns = tokenizer.decode(row.tokens).split("<|assistant|>")[2:]
        shares.append(sum("is not stated." in turn.split("<|end|>")[0] for turn in turns) / len(turns))
    assert shares[0] == 0 < shares[1] < shares[2] == 1


def test_prompt_without_passages_is_the_bare_question(tokenizer) -> None:  # type: ignore[no-untyped-def]
    built = PromptBuilder(tokenizer).from_question("Who?", [], max_tokens=100, drop_order=[])
    conversation = Conversation()
    conversation.user(LAYOUT.user_content("Who?", [])[0])
    conversation.assistant("x")
    row = conversation.row(tokenizer)
    assert row.first_answer is not None
    assert row.tokens[: row.first_answer[0]] == list(built.input_ids)


@pytest.mark.parametrize("rows", [5, 320, 321, 700, 1600])
def test_attention_in_blocks_of_rows_is_causal_attention(rows: int) -> None:
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, rows, 16) for heads in (4, 2, 2))
    output, _ = attend(module, query, key, value, None)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(output, wanted.transpose(1, 2), rtol=0, atol=2e-6)


def test_every_kind_of_row_has_something_to_learn(tokenizer, real_file: Path) -> None:  # type: ignore[no-untyped-def]
    real = load_real_text(real_file)
    rng = random.Random(0)
    stage = Stage("all", copying=0.2, idle=0.2, cloze=0.2, long=0.1, long_passages=(5, 9))
    rows = [one_row(rng, stage, tokenizer, real) for _ in range(200)]
    assert {row.source for row in rows} == {"question", "copying", "idle", "cloze"}
    for row in rows:
        assert len(row.tokens) == len(row.weights)
        assert sum(row.weights) > 0
        assert row.weights[0] == 0


def test_cloze_leaves_out_a_span_that_the_passage_holds(real_file: Path) -> None:
    real = load_real_text(real_file)
    rng = random.Random(0)
    for _ in range(50):
        question, answer, passage = cloze(rng, real)
        assert question.replace("___", answer).removeprefix("Fill the gap: ") in passage


def test_held_out_articles_are_apart(real_file: Path, tmp_path: Path) -> None:
    articles = [{"title": f"T{i}", "paragraphs": [{"context": f"Paragraph {i}."}]} for i in range(100)]
    path = tmp_path / "plain.json"
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    kept, held_out = load_real_text(path), load_real_text(path, held_out=True)
    assert len(kept.paragraphs) + len(held_out.paragraphs) == 100
    assert not set(kept.paragraphs) & set(held_out.paragraphs)


def test_unreadable_real_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InvalidInputError):
        load_real_text(tmp_path / "x.json")


def test_batches_keep_to_their_size_and_repeat(tokenizer) -> None:  # type: ignore[no-untyped-def]
    stage = Stage("questions", idle=0.2, tokens=3000)

    def first_batches() -> list[list[list[int]]]:
        stream = BatchStream(tokenizer, None, seed=3)
        return [[row.tokens for row in stream.next(stage)] for _ in range(5)]

    batches = first_batches()
    assert batches == first_batches()
    assert any(len(batch) > 1 for batch in batches)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= stage.tokens


def test_a_run_can_start_from_saved_weights(tmp_path: Path) -> None:
    first = train.Trainer(tmp_path / "first", SETTINGS, STAGES)
    first.run(steps=2)
    second = train.Trainer(tmp_path / "second", SETTINGS, STAGES, start=tmp_path / "first" / "model")
    for mine, theirs in zip(second.model.parameters(), first.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.to(torch.bfloat16).float(), rtol=0, atol=0)
    assert second.tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    train.Trainer(tmp_path / "first", SETTINGS, STAGES).checkpoint()
    other = SETTINGS.model_copy(update={"shape": SHAPE.model_copy(update={"layers": 1})})
    with pytest.raises(InvalidInputError, match="another shape"):
        train.Trainer(tmp_path / "second", other, STAGES, start=tmp_path / "first" / "model")


def test_two_runs_give_the_same_weights(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        trainer = train.Trainer(tmp_path / name, SETTINGS, STAGES)
        before = trainer.model.model.embed_tokens.weight.detach().clone()
        trainer.run(steps=5)
        assert not torch.equal(before, trainer.model.model.embed_tokens.weight)
        runs.append(trainer.model.state_dict())
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_a_run_goes_on_from_its_checkpoint_and_its_model_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first = train.Trainer(tmp_path, SETTINGS, STAGES)
    first.run(steps=3)
    again = train.Trainer(tmp_path, SETTINGS, STAGES, resume=True)
    assert (again.step, again.stage, again.stage_step) == (3, 1, 1)
    saved, loaded = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    again.run(steps=1)
    assert again.step == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.num_hidden_layers == SHAPE.layers
    assert tokenizer("A text, 123.")["input_ids"] == load_tokenizer(tmp_path)("A text, 123.")["input_ids"]
    assert tokenizer.chat_template == again.tokenizer.chat_template


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        train.Trainer(tmp_path, SETTINGS, STAGES, resume=True)


def test_a_training_is_neither_overwritten_nor_mixed_with_another(tmp_path: Path) -> None:
    train.Trainer(tmp_path / "one", SETTINGS, STAGES).checkpoint()
    there = (tmp_path / "one" / "tokenizer.json").read_text(encoding="utf-8")
    other = SETTINGS.model_copy(update={"seed": 1})
    with pytest.raises(InvalidInputError, match="already"):
        train.Trainer(tmp_path / "one", other, STAGES)
    with pytest.raises(InvalidInputError, match="one of them"):
        train.Trainer(tmp_path / "one", SETTINGS, STAGES, resume=True, start=tmp_path / "one" / "model")
    assert (tmp_path / "one" / "tokenizer.json").read_text(encoding="utf-8") == there
    smaller = SETTINGS.model_copy(update={"shape": SHAPE.model_copy(update={"layers": 1})})
    with pytest.raises(InvalidInputError, match="another shape"):
        train.Trainer(tmp_path / "two", smaller, STAGES, start=tmp_path / "one" / "model")
    assert not (tmp_path / "two").exists()
    train.new_tokenizer(other, None).backend_tokenizer.save(str(tmp_path / "one" / "tokenizer.json"))
    with pytest.raises(InvalidInputError, match="trained with"):
        train.Trainer(tmp_path / "one", SETTINGS, STAGES, resume=True)


def test_a_state_that_does_not_name_its_tokens_can_be_resumed(tmp_path: Path) -> None:
    first = train.Trainer(tmp_path, SETTINGS, STAGES)
    first.checkpoint()
    said = {name: value for name, value in state_said(tmp_path / STATE).items() if name != "tokens"}
    save_state(tmp_path / STATE, first.model, first.optimizers, said)
    assert train.Trainer(tmp_path, SETTINGS, STAGES, resume=True).step == 0


def test_first_layer_starts_with_heads_that_look_one_and_two_tokens_back(tokenizer) -> None:  # type: ignore[no-untyped-def]
    model = new_model(ModelShape(vocab_size=600, layers=1), tokenizer, seed=0)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(torch.arange(50, 80)[None], output_attentions=True).attentions[0][0]
    assert weights[0, 20].argmax() == 19
    assert weights[1, 20].argmax() == 18
