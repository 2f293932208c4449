"""Reading and cutting documents, and what happens to those that cannot be read."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_rag.errors import DocumentError
from focus_rag.search.documents import (
    Document,
    DocumentSettings,
    list_files,
    read_document,
    read_folder,
    split_document,
)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tiny_pdf(text):
    """A one-page PDF written by hand, with a correct cross-reference table."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> "
        ">>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    return (
        f"{body}xref\n0 6\n0000000000 65535 f \n{table}trailer << /Size 6 /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    ).encode()


def test_each_kind_gives_title_and_text(tmp_path):
    assert read_document(write(tmp_path / "mill.txt", "The Old Mill\n\nBuilt in 1882.\n")) == Document(
        "mill.txt", "The Old Mill", "Built in 1882."
    )
    assert read_document(write(tmp_path / "plain.txt", "No heading. Just text.")).title == "plain"
    page = read_document(write(tmp_path / "a.md", "# The *Mill*\n\nBuilt  in\n1882.\n\n## Owners\nAda."))
    assert (page.title, page.text) == ("The *Mill*", "Built in 1882.\n\nOwners\n\nAda.")
    page = read_document(write(tmp_path / "b.md", "---\ntitle: x\n---\nBuilt in 1882."))
    assert (page.title, page.text) == ("x", "Built in 1882.")
    html = (
        "<html><head><title>T</title><style>p{}</style></head><body><h1>Mill &amp; Co</h1><p>Built <b>in</b> "
        "1882.<p>Ada<script>x()</script></body>"
    )
    page = read_document(write(tmp_path / "a.html", html))
    assert (page.title, page.text) == ("Mill & Co", "Built in 1882.\n\nAda")
    page = read_document(write(tmp_path / "report.pdf", tiny_pdf("Built in 1882.")))
    assert (page.title, page.text) == ("report", "Built in 1882.")


@pytest.mark.parametrize(
    ("page", "title", "text"),
    [
        ("<h1>Mill<p>Built in 1882.<p>Sold.", "Mill", "Built in 1882.\n\nSold."),
        ("<title>Mill</title><svg><title>Icon</title><h1>no</h1></svg><p>Built<br>in <del>1881</del> 1882.", "Mill", "Built in 1881 1882."),
        ("<h1>The<br>Mill</h1>Built in 1882.<h1>Owners</h1>Ada.", "The Mill", "Built in 1882.\n\nOwners\n\nAda."),
        ("<p>Built <img src=x> in 1882.<noscript><p>Turn it on</noscript> Sold.", "a", "Built in 1882. Sold."),
    ],
)  # fmt: skip
def test_pages_as_people_write_them(tmp_path, page, title, text):
    read = read_document(write(tmp_path / "a.html", page))
    assert (read.title, read.text) == (title, text)


def test_encodings(tmp_path):
    page = '<meta charset="windows-1251"><p>Мельница'
    assert read_document(write(tmp_path / "d.html", page.encode("cp1251"))).text == "Мельница"
    odd = b'<meta charset="idna"><p>Caf\xe9'
    assert read_document(write(tmp_path / "e.html", odd)).text == "Café"
    assert read_document(write(tmp_path / "a.txt", "Café".encode("utf-16"))).text == "Café"
    assert read_document(write(tmp_path / "b.txt", "\ufeffCafé".encode())).text == "Café"
    assert read_document(write(tmp_path / "c.txt", "Café".encode("cp1252"))).text == "Café"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("broken.pdf", b"%PDF-1.4 nonsense", "cannot be read as a PDF"),
        ("empty.pdf", b"", "cannot be read as a PDF"),
        ("empty.txt", "  \n ", "holds no text"),
        ("image.txt", b"\x89PNG\0\0\0", "not a text file"),
        ("table.xlsx", "a,b", "not one of .txt"),
        ("mark.html", "<p>See note <![1]> there</p>", "cannot be read as HTML"),
        ("digits.html", "<p>&#" + "9" * 5000 + ";</p>", "cannot be read as HTML"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, name, content, what):
    path = write(tmp_path / name, content)
    with pytest.raises(DocumentError, match=what) as caught:
        read_document(path)
    assert str(path) in str(caught.value)


def test_a_protected_pdf_says_so(tmp_path):
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(write(tmp_path / "open.pdf", tiny_pdf("Secret."))))
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(tmp_path / "closed.pdf")
    with pytest.raises(DocumentError, match="password"):
        read_document(tmp_path / "closed.pdf")


def test_a_folder_is_read_recursively_and_the_unreadable_are_noted(tmp_path):
    write(tmp_path / "b.txt", "Second.")
    write(tmp_path / "deep" / "a.md", "First.")
    write(tmp_path / "deep" / "broken.pdf", b"nope")
    write(tmp_path / ".hidden" / "x.txt", "Not seen.")
    write(tmp_path / "picture.png", b"")
    documents, left_out = read_folder(tmp_path)
    assert [document.name for document in documents] == ["b.txt", "deep/a.md"]
    assert len(left_out) == 1 and "broken.pdf" in str(left_out[0])


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(DocumentError, match="No such folder"):
        read_folder(tmp_path / "missing")
    with pytest.raises(DocumentError, match="No documents in"):
        read_folder(tmp_path)
    for name in ("~nosuchuser/x", "x" * 300):
        with pytest.raises(DocumentError, match="cannot be the name"):
            read_folder(name)
    write(tmp_path / "broken.pdf", b"nope")
    with pytest.raises(DocumentError, match=r"broken\.pdf"):
        read_folder(tmp_path)
    write(tmp_path / "a.txt", "long enough")
    with pytest.raises(DocumentError, match="more than 1 documents"):
        list_files(tmp_path, DocumentSettings(max_files=1))
    with pytest.raises(DocumentError, match="limit of 3"):
        read_document(tmp_path / "a.txt", settings=DocumentSettings(max_file_bytes=3))


def test_passages_end_with_sentences_and_carry_the_title():
    text = "One two three four. Five six seven. Eight nine.\n\nTen eleven twelve thirteen fourteen."
    passages = split_document(Document("d/mill.txt", "Mill", text), DocumentSettings(chunk_words=8))
    assert [p.text for p in passages] == [
        "One two three four. Five six seven.",
        "Eight nine. Ten eleven twelve thirteen fourteen.",
    ]
    assert [(p.title, p.id) for p in passages] == [("Mill", "d/mill.txt#1"), ("Mill", "d/mill.txt#2")]


def test_initials_and_titles_end_no_sentence():
    text = "Built by J. R. Lee and Dr. Ann Cole. Prof. Webb came later. Was it plan B? Yes."
    passages = split_document(Document("d", "t", text), DocumentSettings(chunk_words=9))
    assert [p.text for p in passages] == [
        "Built by J. R. Lee and Dr. Ann Cole.",
        "Prof. Webb came later. Was it plan B? Yes.",
    ]


@given(st.text(max_size=400), st.integers(5, 40))
def test_cutting_loses_no_word_and_keeps_the_limit(text, limit):
    passages = split_document(Document("d", "t", text), DocumentSettings(chunk_words=limit))
    assert " ".join(p.text for p in passages).split() == text.split()
    assert all(len(p.text.split()) <= limit for p in passages)


def test_headings_are_none_in_code_and_may_be_underlined(tmp_path):
    code = "Run this:\n\n```sh\n# wipe the disk\ndd\n```\n\nOld Mill\n========\n\nBuilt in 1882.\n\n## Owners\nAda."
    page = read_document(write(tmp_path / "a.md", code))
    assert page.title == "Old Mill" and "# wipe the disk" in page.text and "====" not in page.text
    assert page.text.endswith("Built in 1882.\n\nOwners\n\nAda.")
    page = read_document(write(tmp_path / "b.md", "---\ntitle: 'The Old Mill'\n---\n# Mill\nBuilt in 1882."))
    assert (page.title, page.text) == ("Mill", "Built in 1882.")
    with pytest.raises(DocumentError, match=r"holds no text\.$"):
        read_document(write(tmp_path / "c.md", "# Only a heading"))


@pytest.mark.parametrize(
    ("declared", "encoding", "text"),
    [
        ('<meta charset="iso-8859-1">', "cp1252", "\u201csmart\u201d \u20ac5"),
        ('<meta charset="gb2312">', "gb18030", "\u6731\u9555\u57fa"),
        ('<meta charset="utf-16">', "utf-8", "na\u00efve"),
        ('<?xml version="1.0" encoding="windows-1251"?>', "cp1251", "\u041f\u0440\u0438\u0432\u0435\u0442"),
        ("", "utf-32", "na\u00efve"),
    ],
)
def test_encodings_are_what_pages_mean_by_their_names(tmp_path, declared, encoding, text):
    page = f"{declared}<title>T</title><p>{text}</p>".encode(encoding)
    assert read_document(write(tmp_path / "a.html", page)).text == text


def test_links_are_followed_once_and_folders_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    write(tmp_path / "real" / "a.txt", "Built in 1882.")
    root = tmp_path / "root"
    write(root / "b.txt", "Burnt in 1891.")
    write(root / "locked" / "c.txt", "Rebuilt in 1893.")
    (root / "archive").symlink_to(tmp_path / "real")
    (root / "archive" / "loop").symlink_to(root)
    found, errors = read_folder(root)
    assert [one.name for one in found] == ["archive/a.txt", "b.txt", "locked/c.txt"] and errors == []
    walk = os.walk

    def locked(top, **options):
        for folder, below, names in walk(top, **options):
            if folder == str(root):
                below.remove("locked")
                options["onerror"](PermissionError(13, "Permission denied", str(root / "locked")))
            yield folder, below, names

    monkeypatch.setattr(os, "walk", locked)
    found, errors = read_folder(root)
    assert [one.name for one in found] == ["archive/a.txt", "b.txt"]
    assert [str(one) for one in errors] == [f"Cannot read {root / 'locked'}: Permission denied."]


def test_text_without_spaces_is_cut_into_passages_that_lose_nothing():
    text = "\u6c34\u8f66\u5efa\u4e8e1841\u5e74\u3002\u9762\u5305\u5e97\u5f88\u65e7\uff01" * 60
    passages = split_document(Document("d", "t", text))
    assert len(passages) > 5 and "".join(one.text.replace(" ", "") for one in passages) == text
    endless = "\u6c34" * 1000
    assert [one.text for one in split_document(Document("d", "t", endless))] == ["\u6c34" * 100] * 10
