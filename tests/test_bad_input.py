"""Input nobody should send: one clear error of ours each, or the documented behaviour; never another exception."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from focus_rag.alpha import FittedAlpha, RetrievalAlpha
from focus_rag.cli import main
from focus_rag.errors import DocumentError, FocusRagError, InvalidInputError
from focus_rag.noise import estimate_noise, signal_of
from focus_rag.passages import Passage
from focus_rag.search.documents import SUFFIXES, Document, read_document, read_folder, split_document
from focus_rag.search.passage_index import PassageIndex, RetrievalSettings

anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
scores = (
    st.none()
    | st.floats()
    | st.integers(-(10**400), 10**400)
    | st.text(max_size=6)
    | st.sampled_from(["0.5", "nan", "1e999", "-inf"])
)
texts = st.text(max_size=60) | st.sampled_from(["", " ", "\n\n", "\0", "\ud800", "<|end|>", "...", "a"])
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(refusal, call, *arguments, **options):
    """What the call returned, or how it refused; any other exception fails the test."""
    try:
        return call(*arguments, **options), None
    except refusal as error:
        return None, error


@given(st.lists(st.tuples(texts, scores), max_size=25))
def test_any_scores_and_texts_give_an_alpha_between_0_and_the_ceiling(rows):
    signal = signal_of([Passage(text, score=score) for text, score in rows])
    assert signal.n_passages == len(rows)
    choice = RetrievalAlpha().choose(signal)
    assert 0.0 <= choice.alpha <= RetrievalAlpha().ceiling
    assert choice.reason
    if not any(passage.score is not None for passage in [Passage("", score=s) for _, s in rows]) and rows:
        assert signal.source == "count" and signal.noise == 1 - 1 / len(rows)


@given(st.lists(anything, max_size=8), anything)
def test_scores_of_any_type_are_estimated_or_the_kind_is_refused(values, kind):
    with contextlib.suppress(InvalidInputError):
        assert 0.0 <= estimate_noise(values, score_kind=kind) <= 1.0


@given(anything)
def test_given_noise_of_any_type_is_taken_or_refused(noise):
    signal, error = outcome(InvalidInputError, signal_of, [Passage("a"), Passage("b")], noise=noise)
    assert "[0, 1]" in str(error) if error else 0.0 <= signal.noise <= 1.0


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True).map(sorted),
    st.lists(st.floats(0, 1), min_size=1, max_size=4, unique=True).map(sorted),
    st.data(),
    st.integers(0, 10**6),
    st.floats(0, 1),
)
def test_a_surface_never_leaves_its_knots(counts, noises, data, n, noise):
    row = st.lists(st.floats(0, 10), min_size=len(noises), max_size=len(noises))
    alphas = data.draw(st.lists(row, min_size=len(counts), max_size=len(counts)))
    policy = FittedAlpha(counts=counts, noises=noises, alphas=alphas)
    signal = signal_of([], noise=noise)
    assert policy.choose(signal).alpha == 0.0
    alpha = policy.choose(type(signal)(n, noise, "given", "test")).alpha
    assert math.isfinite(alpha)
    flat = [value for row_ in alphas for value in row_]
    # Among fewer passages than were measured, one aside, nothing is done.
    is_measured = n > 1 and n >= next((count for count in counts if count > 1), 1)
    assert (min(flat) - 1e-9 if is_measured else 0.0) <= alpha <= max(flat) + 1e-9


@few
@given(st.binary(max_size=300), st.sampled_from(SUFFIXES))
def test_any_bytes_are_read_or_refused_by_name(tmp_path, content, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    document, error = outcome(DocumentError, read_document, path)
    if error:
        assert str(path) in str(error)
    else:
        assert document.text and split_document(document)


@few
@given(st.binary(max_size=200))
def test_a_pdf_cut_or_overwritten_is_read_or_refused_by_name(tmp_path, noise):
    path = tmp_path / "file.pdf"
    path.write_bytes(
        b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n" + noise + b"\nstartxref\n9\n%%EOF"
    )
    with pytest.raises(DocumentError, match=r"file\.pdf"):
        read_document(path)


@few
@given(st.text(max_size=300))
def test_any_page_is_html(tmp_path, page):
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    with contextlib.suppress(DocumentError):
        assert "<script" not in read_document(path).text or "<script" in page


@few
@given(st.lists(texts, max_size=6), texts, st.integers(-2, 10))
def test_any_passages_and_question_are_searched_or_refused(passages, question, top_k):
    try:
        found = PassageIndex([Passage(text) for text in passages]).search(question, top_k)
    except FocusRagError:
        return
    assert len(found) == min(top_k, len(passages))
    assert all(-1.001 <= passage.score <= 1.001 for passage in found)


@few
@given(st.lists(texts, min_size=1, max_size=4))
def test_what_the_cache_returns_is_what_was_read(tmp_path, contents):
    folder = tmp_path / "docs"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for number, content in enumerate(contents):
        (folder / f"{number}.txt").write_text(content, encoding="utf-8", errors="replace")
    kept = RetrievalSettings(cache_folder=tmp_path / "cache")
    try:
        first = PassageIndex.from_folder(folder, settings=kept)
    except DocumentError:
        return
    again = PassageIndex.from_folder(folder, settings=kept)
    assert (again.passages, again.left_out) == (first.passages, first.left_out)


@pytest.mark.parametrize("what", ["missing", "file", "unreadable", "empty"])
def test_folders_are_refused_by_name(tmp_path, what):
    folder = tmp_path / what
    if what == "file":
        folder.write_text("not a folder")
    elif what != "missing":
        folder.mkdir()
    if what == "unreadable":
        (folder / "broken.pdf").write_bytes(b"nope")
    for read in (read_folder, PassageIndex.from_folder):
        with pytest.raises(DocumentError, match=what):
            read(folder)


@few
@given(
    st.sampled_from(["ask", "inspect", "import", "demo"]),
    st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4),
)
def test_any_arguments_end_in_one_line_with_status_2(capsys, command, words):
    with_marker = [word if word.startswith("--") else f"--x{word}" for word in words]
    capsys.readouterr()
    assert main([command, *with_marker]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_document_of_one_endless_word_is_cut():
    passages = split_document(Document("d", "t", "x" * 200_000))
    assert "".join(passage.text for passage in passages).replace(" ", "") == "x" * 200_000
    assert max(len(passage.text) for passage in passages) <= 100 * 400
    assert PassageIndex(passages).search("y" * 100_000, 3)[0].score == 0.0
