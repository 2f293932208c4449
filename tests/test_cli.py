"""The command line over a real tiny model: what is written, what a program may read, and one line with status 2 on bad
input."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import focus_rag.embedded
from focus_rag.cli import COMMANDS, build_app, main
from focus_rag.cli.demo import read_questions
from focus_rag.cli.eval import _require_used
from focus_rag.cli.loading import parse_alpha
from focus_rag.cli.output import one_line, shorten
from focus_rag.errors import DocumentError, InvalidInputError
from focus_rag.profile import FocusProfile
from focus_rag.score_split import ScoreSplit
from tests.published_folder import published_folder
from tests.test_documents import tiny_pdf
from tests.test_passage_index import LetterModel
from tests.tiny_models import tiny_model, tiny_profile
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A random tiny model with tokenizer, and a profile of it, on disk."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(vocab_size=300, max_position_embeddings=4096)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    tiny_profile(model).save(folder / "profile")
    return ["--model", str(folder / "model"), "--profile", str(folder / "profile")]


@pytest.fixture
def docs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "mill.md").write_text("# Mill\n\nThe mill was built in 1882 [red].")
    (folder / "bridge.txt").write_text("The bridge was opened in 1910.\x1b[31m")
    (folder / "school.html").write_text("<h1>School</h1><p>Pupils learn music.")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"Example: focus-rag {name}" in " ".join(capsys.readouterr().out.split())


def test_help_loads_nothing_heavy():
    heavy = ["torch", "transformers", "sklearn", "faiss", "matplotlib", "numpy", "pydantic", "rich.table"]
    code = (
        "import sys; from focus_rag.cli import main; assert main(['--help']) == 0; "
        f"sys.exit(', '.join(m for m in {heavy} if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_the_table_names_modules_with_a_command():
    assert all(callable(importlib.import_module(module).command) for module in COMMANDS.values())
    assert len(build_app().registered_commands) == len(COMMANDS)


def test_ask_as_json(saved, docs, capsys):
    (docs / "broken.pdf").write_bytes(b"nope")
    assert (
        main(["ask", "When was the mill built?", "--docs", str(docs), *saved, "--max-new-tokens", "4", "--json"]) == 0
    )
    out = capsys.readouterr()
    record = json.loads(out.out)
    assert next(source["id"] for source in record["sources"]) == "mill.md#1"
    assert sum(source["attention"] for source in record["sources"]) == pytest.approx(1.0, abs=1e-4)
    assert 0 < record["alpha"] < 0.3 and 0 < record["noise"] <= 1
    assert record["usage"]["completion_tokens"] <= 4
    assert "broken.pdf" in record["left_out"][0] and "broken.pdf" in out.err


def test_ask_for_people(saved, docs, capsys):
    assert (
        main(
            [
                "ask",
                "When was the mill built?",
                "--docs",
                str(docs),
                *saved,
                "--alpha",
                "0.5",
                "--top-k",
                "2",
                "--max-new-tokens",
                "2",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "alpha 0.5" in out and "alpha fixed at 0.5" in out
    assert "mill.md#1" in out and "[red]" in out
    assert out.count("#1") == 2
    assert "\x1b" not in out


def test_alpha_zero_is_the_bare_model(saved, docs, capsys):
    texts = []
    for arguments in ([*saved, "--alpha", "0"], saved[:2]):
        assert main(["ask", "mill?", "--docs", str(docs), *arguments, "--max-new-tokens", "6", "--json"]) == 0
        texts.append(json.loads(capsys.readouterr().out)["answer"])
    assert texts[0] == texts[1]


def test_ask_leans_on_the_best_scored_passages(saved, docs, capsys):
    ask = ["ask", "When was the mill built?", "--docs", str(docs), *saved, "--max-new-tokens", "3", "--json"]
    records = []
    for arguments in ([], ["--split", "0.05"], ["--split", "0.05", "--alpha", "0.5"], ["--split", "off"]):
        assert main([*ask, *arguments]) == 0
        records.append(json.loads(capsys.readouterr().out))
    plain, leaning, both, off = records
    assert off == plain and (plain["alpha"] > 0, plain["tau"]) == (True, 1.0)
    assert (leaning["alpha"], leaning["tau"]) == (
        0.0,
        0.05,
    ) and "split softmax on the best scored passage, tau 0.05" in leaning["reason"]
    assert (both["alpha"], both["tau"]) == (0.5, 0.05)
    assert [one["favoured"] for one in leaning["sources"]] == [True, *[False] * (len(leaning["sources"]) - 1)]
    assert leaning["sources"][0]["attention"] > plain["sources"][0]["attention"]


def test_ask_from_the_best_passages_alone(saved, docs, capsys):
    asked = ["ask", "When was the mill built?", "--docs", str(docs), *saved, "--max-new-tokens", "2"]
    assert main([*asked, "--keep-best", "1", "--json"]) == 0
    sources = json.loads(capsys.readouterr().out)["sources"]
    assert [(source["id"], source["used"]) for source in sources] == [
        ("mill.md#1", True),
        *((source["id"], False) for source in sources[1:]),
    ]
    assert len(sources) > 1 and all("best" in source["dropped_reason"] for source in sources[1:])
    assert main([*asked, "--keep-best", "1"]) == 0
    assert "not read: it is none of the best" in capsys.readouterr().out
    assert main([*asked, "--keep-best", "0"]) == 2


def test_characters_that_the_output_cannot_write_cost_nothing_else(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="cp1252", write_through=True))
    monkeypatch.setattr("focus_rag.cli.build_app", lambda: lambda **_: print("right \u2713, then more"))
    assert main(["demo"]) == 0
    assert written.getvalue().strip() == b"right ?, then more"


def test_demo_counts_what_it_shows(saved, docs, capsys, monkeypatch):
    rows = [{"question": "When was the mill built?", "answers": ["1882"], "document": "mill.md"}] * 3
    (docs / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(focus_rag.embedded, "demo_folder", lambda: docs)
    assert main(["demo", *saved, "--questions", "2", "--top-k", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["n"], record["retrieved"]) == (2, 2)
    assert record["bare"] == sum(one["bare_is_right"] for one in record["questions"])
    assert record["focused"] == sum(one["focused_is_right"] for one in record["questions"])
    assert record["directions"] == sum(one["directions_are_right"] for one in record["questions"])
    assert all(
        one["alpha"] > 0 and one["favoured"] == 0 and one["focused"] == one["directions"] for one in record["questions"]
    )
    profile = FocusProfile.load(saved[3])
    profile.replace(split=ScoreSplit(tau=0.01)).save(docs.parent / "leaning")
    leaning = [*saved[:3], str(docs.parent / "leaning")]
    assert main(["demo", *leaning, "--questions", "2", "--top-k", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["mean_favoured"] == 1.0 and all(one["favoured"] == 1 for one in record["questions"])
    assert any(one["focused"] != one["directions"] for one in record["questions"])
    assert main(["demo", *saved, "--questions", "1", "--top-k", "2"]) == 0
    assert "answer among the passages  1/1" in capsys.readouterr().out


def test_the_demo_names_the_model_that_answers(saved, docs, capsys, monkeypatch):
    (docs / "questions.jsonl").write_text(json.dumps({"question": "When was the mill built?", "answers": ["1882"]}))
    monkeypatch.setattr(focus_rag.embedded, "demo_folder", lambda: docs)
    monkeypatch.setattr(focus_rag.embedded, "embedded_model_folder", lambda: Path(saved[1]))
    monkeypatch.setattr(focus_rag.embedded, "embedded_profile_folder", lambda: Path(saved[3]))
    assert main(["demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "embedded reader"


def test_ask_reads_every_kind_and_writes_a_page(saved, docs, tmp_path, capsys):
    (docs / "sub").mkdir()
    (docs / "sub" / "report.pdf").write_bytes(tiny_pdf("The tower was finished in 1899."))
    page = tmp_path / "answer.html"
    ask = ["ask", "When was the tower finished?", "--docs", str(docs), *saved, "--max-new-tokens", "3", "--json"]
    assert main([*ask, "--report", str(page), "--embedder", "tfidf"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sources"][0]["id"] == "sub/report.pdf#1"
    assert {source["id"].split("#")[0] for source in record["sources"]} == {
        "mill.md", "bridge.txt", "school.html", "sub/report.pdf",
    }  # fmt: skip
    assert record["searched_with"].startswith("tfidf")
    assert "The tower was finished" in page.read_text()


@pytest.mark.parametrize("there", ["nothing", "the package", "package and model"])
def test_the_search_model_is_used_where_it_can_be_had(monkeypatch, there):
    from focus_rag.search.embedders import SentenceTransformerEmbedder, TfidfEmbedder, best_embedder

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None if there == "nothing" else object())
    load = LetterModel if there == "the package" else lambda _: object()  # the first has no such model
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=load))
    kind = SentenceTransformerEmbedder if there == "package and model" else TfidfEmbedder
    assert isinstance(best_embedder(), kind)


def test_without_arguments_there_is_help(capsys):
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_import_then_inspect(tmp_path, capsys):
    published_folder(tmp_path)
    assert (
        main(["import", str(tmp_path), "--model", "a/b", "--out", str(tmp_path / "p"), "--top-k", "2", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["heads"] == 2
    assert main(["inspect", str(tmp_path / "p"), "--png", str(tmp_path / "picture.of.heads")]) == 0
    out = capsys.readouterr().out
    assert "a/b: 2 contextual heads" in out and "post_rope" in out
    assert (tmp_path / "picture.of.heads").read_bytes().startswith(b"\x89PNG"), "a PNG under exactly that name"


def test_inspect_says_where_passages_began(tmp_path, capsys):
    profile = tiny_profile(tiny_model(), site="post_rope").replace(passages_at=17)
    assert main(["inspect", str(profile.save(tmp_path))]) == 0
    assert "passages begin at token 17" in capsys.readouterr().out


def test_inspect_shows_and_draws(saved, tmp_path, capsys):
    assert main(["inspect", saved[3], "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["heads"]) == 4 and record["policy"]["kind"] == "retrieval"
    assert record["passages_at"] is None
    assert main(["inspect", saved[3], "--png", str(tmp_path / "heads.png")]) == 0
    assert "4 contextual heads" in capsys.readouterr().out
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


def test_control_characters_never_reach_the_terminal():
    assert one_line("a\x1b[31m\n b\u202e") == "a [31m b"
    assert shorten("word " * 20, 10) == "word word…"


def test_alpha_option():
    assert parse_alpha("auto") == "auto" and parse_alpha("-0.5") == -0.5
    for text in ("nan", "inf", "loud", ""):
        with pytest.raises(InvalidInputError, match="--alpha"):
            parse_alpha(text)


@pytest.mark.parametrize("content", ["", "{}", "not json", "[1]", '{"question": "q", "answers": 3}'])
def test_broken_demo_questions_are_refused(tmp_path, content):
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(DocumentError, match=r"q\.jsonl"):
        read_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask", "q", "--docs", "{tmp}/missing"], "No such folder"),
        (["ask", " ", "--docs", "{docs}"], "question is empty"),
        (["ask", "q", "--docs", "{docs}", "--alpha", "nan"], "--alpha"),
        (["ask", "q", "--docs", "{docs}", "--top-k", "0"], "--top-k"),
        (["ask", "q", "--docs", "{docs}", "--model", "{tmp}/missing"], "neither a folder nor a Hub id"),
        (["ask", "q", "--docs", "{docs}", "--model", "{docs}"], "cannot be loaded"),
        (["ask", "q", "--docs", "{docs}", "--split", "2"], "--split"),
        (["ask", "q", "--docs", "{docs}", "--model", "any", "--split", "0.1"], "--profile"),
        (["ask", "q"], "--docs"),
        (["ask", "q", "--docs", "{docs}", "--model", "any", "--alpha", "0.2"], "--profile"),
        (["ask", "q", "--docs", "{docs}", "--nonsense"], "--nonsense"),
        (["ask", "q", "--docs", "{docs}", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["ask", "q", "--docs", "{docs}", "--report", "{tmp}/missing/a.html"], "--report"),
        (["ask", "q", "--docs", "{docs}", "--profile", "{docs}"], "not a profile"),
        (["inspect", "--png", "{docs}"], "Cannot write the picture"),
        (["dance"], "dance"),
        (["inspect", "{tmp}/missing"], "missing"),
        (["inspect", "{docs}"], "not a profile"),
        (["import", "{tmp}", "--model", "a/b", "--out", "{tmp}/out"], "No published directions"),
        (["import", "{tmp}", "--model", "a/b"], "--out"),
        (["demo", "--questions", "0"], "at least 1"),
        (["fit", "--out", "{tmp}/out", "--seed", "99999999999999999999"], "seed"),
        (["eval", "--out", "{tmp}/out", "--max-new-tokens", "5000"], "together"),
        (["eval", "--out", "{tmp}/out", "--docs", "{docs}"], "--data"),
        (["eval", "--out", "{tmp}/out", "--score-kind", "bm25"], "--data"),
        (["eval", "--out", "{tmp}/out", "--data", "{docs}", "--rich", "0.5"], "--rich"),
        (["import", "{tmp}", "--model", "a/b", "--out", "{docs}"], "not an empty folder"),
        (["serve", "--model", "any", "--split", "0.1"], "--profile"),
        (["serve", "--model", "any", "--alpha", "0.2"], "--profile"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, says, docs, tmp_path, capsys):
    filled = [argument.format(tmp=tmp_path, docs=docs) for argument in arguments]
    assert main(filled) == 2
    out = capsys.readouterr()
    (line,) = out.err.strip().splitlines()
    assert line.startswith("focus-rag: ") and says in line
    assert out.out == ""


def test_documents_and_score_kind_may_be_those_of_the_dev_questions(docs):
    _require_used(None, docs / "dev.csv", docs, 0.5, "bm25")


def test_a_device_without_weights_is_refused(saved, docs, capsys):
    assert main(["ask", "q", "--docs", str(docs), *saved, "--device", "meta"]) == 2
    assert "'meta'" in capsys.readouterr().err.splitlines()[-1]


def test_a_profile_that_cannot_be_written_is_refused_before_it_is_fitted(saved, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["fit", *saved[:2], "--out", str(tmp_path / "file" / "profile")]) == 2
    assert "Nothing can be written" in capsys.readouterr().err.splitlines()[-1]


def test_a_question_longer_than_the_window_is_refused(saved, docs, capsys):
    assert main(["ask", "mill " * 20_000, "--docs", str(docs), *saved]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device", "answers.jsonl"), OSError("no space")])
def test_a_full_disk_is_told_in_one_line(monkeypatch, capsys, failure):
    def full(**_):
        raise failure

    monkeypatch.setattr("focus_rag.profile.FocusProfile.load", lambda *_: full())
    assert main(["inspect", "somewhere"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pace" in said and "kept where it was written" in said
