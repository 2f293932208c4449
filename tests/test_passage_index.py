"""Search over tiny folders: the right passage first, cosine scores, and a cache that follows the bytes."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from focus_rag.errors import DocumentError, InvalidInputError, MissingDependencyError
from focus_rag.passages import Passage
from focus_rag.search import passage_index
from focus_rag.search.embedders import SentenceTransformerEmbedder, TfidfEmbedder
from focus_rag.search.passage_index import PassageIndex, RetrievalSettings

TEXTS = {
    "mill.txt": "The Old Mill\n\nThe mill on the river was built in 1882 by Ada Byrne.",
    "bridge.txt": "The Stone Bridge\n\nThe bridge was opened in 1910 and crosses the river.",
    "school.md": "# The School\n\nPupils learn chemistry and music there.",
}


@pytest.fixture
def folder(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for name, text in TEXTS.items():
        (docs / name).write_text(text)
    return docs


@pytest.fixture
def settings(tmp_path):
    return RetrievalSettings(cache_folder=tmp_path / "cache")


def test_the_best_passage_comes_first_with_cosine_scores(folder, settings):
    found = PassageIndex.from_folder(folder, settings=settings).search("Who built the mill?", 20)
    assert next(p.id for p in found) == "mill.txt#1"
    assert len(found) == 3
    scores = [p.score for p in found]
    assert scores == sorted(scores, reverse=True)
    assert all(-1.0001 <= score <= 1.0001 for score in scores)
    assert scores[0] > 0.3 and scores[-1] == pytest.approx(0.0, abs=1e-5)


def test_full_rank_reduction_orders_like_plain_tfidf():
    passages = [
        Passage(f"{a} {b} shared")
        for a in ("mill", "bridge", "school")
        for b in ("river", "stone", "music", "chemistry")
    ]
    index = PassageIndex(passages)
    found = index.search("stone bridge", 3)
    assert found[0].text == "bridge stone shared"
    assert found[0].score > found[1].score


def test_one_passage_and_one_word():
    assert PassageIndex([Passage("mill")]).search("mill", 5)[0].score == pytest.approx(1.0)
    assert PassageIndex([Passage("mill")]).search("unknown words", 5)[0].score == 0.0


def test_the_second_time_nothing_is_computed(folder, settings, monkeypatch):
    first = PassageIndex.from_folder(folder, settings=settings).search("When was the bridge opened?", 2)
    monkeypatch.setattr(TfidfEmbedder, "fit", lambda *_: pytest.fail("fitted again"))
    monkeypatch.setattr(passage_index, "read_folder", lambda *_: pytest.fail("read again"))
    again = PassageIndex.from_folder(folder, settings=settings).search("When was the bridge opened?", 2)
    assert [p.id for p in again] == [p.id for p in first]
    assert [p.score for p in again] == pytest.approx([p.score for p in first], abs=1e-6)


def test_changed_bytes_or_settings_are_another_index(folder, settings):
    PassageIndex.from_folder(folder, settings=settings)
    (folder / "mill.txt").write_text("A windmill, rebuilt in 1999.")
    assert (
        PassageIndex.from_folder(folder, settings=settings).search("windmill", 1)[0].text
        == "A windmill, rebuilt in 1999."
    )
    PassageIndex.from_folder(folder, settings=RetrievalSettings(cache_folder=settings.cache_folder, dimensions=2))
    assert len(list(settings.cache_folder.iterdir())) == 3


def test_the_index_unused_for_longest_is_deleted(folder, tmp_path):
    def kept(dimensions):
        settings = RetrievalSettings(cache_folder=tmp_path / "cache", cached_indexes=2, dimensions=dimensions)
        before = set((tmp_path / "cache").iterdir()) if (tmp_path / "cache").exists() else set()
        PassageIndex.from_folder(folder, settings=settings)
        return before, set((tmp_path / "cache").iterdir())

    _, one = kept(2)
    (tmp_path / "cache" / "notes").mkdir()
    _, two = kept(3)
    (second,) = two - one - {tmp_path / "cache" / "notes"}
    os.utime(second, (1, 1))
    (first,) = one
    os.utime(first, (0, 0))
    kept(2)  # read again, so used later than the second
    _, three = kept(4)
    assert first in three
    assert second not in three
    assert len(three) == 3  # the folder that is no index among them
    assert (tmp_path / "cache" / "notes") in three


@pytest.mark.parametrize("name", ["index.json", "arrays.npz"])
@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04 broken", b"[1, 2]"])
def test_a_damaged_cache_is_passed_over(folder, settings, name, content):
    PassageIndex.from_folder(folder, settings=settings)
    (kept,) = settings.cache_folder.iterdir()
    (kept / name).write_bytes(content)
    assert PassageIndex.from_folder(folder, settings=settings).search("mill", 1)[0].id == "mill.txt#1"


def test_pickled_arrays_in_the_cache_are_never_loaded(folder, settings):
    PassageIndex.from_folder(folder, settings=settings)
    (kept,) = settings.cache_folder.iterdir()
    np.savez(kept / "arrays.npz", vectors=np.array([object()], dtype=object))
    assert PassageIndex._load(kept, TfidfEmbedder()) is None


def test_an_unwritable_cache_does_not_stop_the_search(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    index = PassageIndex.from_folder(folder, settings=RetrievalSettings(cache_folder=tmp_path / "file"))
    assert index.search("mill", 1)[0].id == "mill.txt#1"


def test_without_cache_nothing_is_written(folder, tmp_path):
    PassageIndex.from_folder(folder, settings=RetrievalSettings(cache_folder=tmp_path / "cache", use_cache=False))
    assert not (tmp_path / "cache").exists()


def test_files_left_out_are_remembered(folder, settings):
    (folder / "broken.pdf").write_bytes(b"nope")
    for _ in range(2):
        (note,) = PassageIndex.from_folder(folder, settings=settings).left_out
        assert "broken.pdf" in note


def test_bad_input_is_refused(folder, settings):
    index = PassageIndex.from_folder(folder, settings=settings)
    for question in ("", "  ", None):
        with pytest.raises(InvalidInputError, match="question is empty"):
            index.search(question)
    with pytest.raises(InvalidInputError, match="top_k"):
        index.search("mill", 0)
    with pytest.raises(InvalidInputError, match="nothing to search"):
        PassageIndex([])
    with pytest.raises(DocumentError, match="no words"):
        PassageIndex([Passage("..."), Passage("the of")])
    with pytest.raises(DocumentError, match="No such folder"):
        PassageIndex.from_folder(folder / "missing", settings=settings)


def test_a_question_of_a_hundred_thousand_characters_is_just_slow_to_read(folder, settings):
    assert PassageIndex.from_folder(folder, settings=settings).search("mill " * 20_000, 1)[0].id == "mill.txt#1"


class LetterModel:
    """Stands for a sentence-transformers model: counts of letters, lengths left as they fall."""

    def __init__(self, name):
        if name != "letters":
            raise OSError(f"{name} is not there")

    def encode(self, texts):
        return np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


def test_a_sentence_transformers_model_takes_its_place(folder, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=LetterModel))
    for _ in range(2):
        index = PassageIndex.from_folder(folder, settings=settings, embedder=SentenceTransformerEmbedder("letters"))
        found = index.search("the mill on the river", 3)
        assert found[0].id == "mill.txt#1"
        assert 0 < found[0].score <= 1.0001
    assert len(list(settings.cache_folder.iterdir())) == 1
    with pytest.raises(InvalidInputError, match="'words' cannot be loaded"):
        SentenceTransformerEmbedder("words")


def test_a_model_trained_again_in_its_folder_is_another_one(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=lambda model: None))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = SentenceTransformerEmbedder(str(tmp_path)).identity
    assert SentenceTransformerEmbedder(str(tmp_path)).identity == first
    weights.write_bytes(b"other")
    assert SentenceTransformerEmbedder(str(tmp_path)).identity != first
    assert SentenceTransformerEmbedder("a/name").identity == "sentence-transformers-a/name"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match=r"focus-rag\[embeddings\]"):
        SentenceTransformerEmbedder("any")


def test_an_embedder_may_serve_several_indexes(tmp_path):
    embedder = TfidfEmbedder()
    folders = {"a": "The bakery opened in 1902. The mill was built in 1841.", "b": "Cats and dogs are animals."}
    indexes = {}
    for name, text in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(text)
        settings = RetrievalSettings(cache_folder=tmp_path / "cache")
        indexes[name] = PassageIndex.from_folder(tmp_path / name, settings=settings, embedder=embedder)
    assert indexes["a"].search("When did the bakery open?", 1)[0].score > 0.1
    assert indexes["a"].search("cats animals dogs", 1)[0].score == 0.0
    assert PassageIndex([Passage("cats")], embedder).search("bakery", 1)[0].score == 0.0
    assert indexes["b"].search("animals", 1)[0].score > 0.1


def test_another_reader_of_pdfs_makes_another_index(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "x.txt").write_text("The mill was built in 1841.")
    before = passage_index._key(tmp_path / "docs", RetrievalSettings(), TfidfEmbedder())
    monkeypatch.setattr(passage_index, "version", lambda package: "99")
    assert passage_index._key(tmp_path / "docs", RetrievalSettings(), TfidfEmbedder()) != before


def test_words_of_languages_without_spaces_are_found():
    index = PassageIndex(
        [
            Passage("\u78e8\u574a\u5efa\u4e8e\u4e00\u516b\u56db\u4e00\u5e74\u3002"),
            Passage("\u9762\u5305\u5e97\u5f88\u65e7\u3002"),
        ]
    )
    best, other = index.search("\u78e8\u574a\u5efa\u4e8e\u54ea\u4e00\u5e74\uff1f", 2)
    assert best.text.startswith("\u78e8\u574a") and best.score > 0.3 and other.score == pytest.approx(0.0, abs=1e-6)
