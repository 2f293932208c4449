"""Documents on disk -> passages: read .txt, .md, .html and .pdf, cut at sentence ends to about the same
number of words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from focus_rag.errors import DocumentError
from focus_rag.passages import Passage
from focus_rag.sentences import sentence_spans
from focus_rag.shared_words import word_spans

SUFFIXES: Final = (".txt", ".md", ".markdown", ".html", ".htm", ".pdf")

_HEADING_CHARACTERS: Final = 100
_HTML_CHARSET: Final = re.compile(rb"""<meta[^>]*charset\s*=\s*["']?([A-Za-z0-9._:-]+)""", re.IGNORECASE)
_XML_ENCODING: Final = re.compile(rb"""\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._:-]+)""", re.IGNORECASE)
_ENCODINGS: Final = {
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "latin1", "ascii", "us-ascii"), "cp1252"),
    **dict.fromkeys(("gb2312", "gbk", "x-gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis"), "cp932"),
    **dict.fromkeys(("utf-16", "utf-16le", "utf-16be"), "utf-8"),
}
"""What pages mean by these names (WHATWG's Encoding Standard)."""
_FRONT_MATTER: Final = re.compile(r"\A---\n.*?\n(---|\.\.\.)\n", re.DOTALL)
_FRONT_TITLE: Final = re.compile(r"^title:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE)
_MARKDOWN_HEADING: Final = re.compile(r"#{1,6}\s+(.+?)\s*#*$")
_UNDERLINE: Final = re.compile(r" {0,3}={2,}\s*")
_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})")


class DocumentSettings(BaseModel):
    """What is read and how it is cut.

    Attributes:
        chunk_words: Words a passage aims at; it ends with a sentence, so it may hold fewer, never more. A sentence that
            is longer by itself is cut.
        max_file_bytes: A larger file is refused.
        max_files: A folder with more readable files is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_words: int = Field(default=100, ge=5)
    max_file_bytes: int = Field(default=50_000_000, ge=1)
    max_files: int = Field(default=10_000, ge=1)


@dataclass(frozen=True, slots=True)
class Document:
    """One document as plain text.

    Attributes:
        name: Path below the folder it came from, with forward slashes.
        title: Its first heading, or the file's stem.
        text: Paragraphs separated by blank lines, the heading left out.
    """

    name: str
    title: str
    text: str


def user_path(path: str | Path) -> Path:
    """A path as people type it, with `~` for their home.

    Raises:
        DocumentError: It cannot be the name of a file or folder.
    """
    try:
        found = Path(path).expanduser()
        found.exists()
    except (RuntimeError, OSError, ValueError) as error:  # no such user, a name too long, a null byte
        raise DocumentError(f"{str(path)[:80]!r} cannot be the name of a folder: {error}") from error
    return found


def list_files(folder: str | Path, settings: DocumentSettings | None = None) -> list[Path]:
    """Readable files below a folder, hidden ones left out, sorted by path; a single file stands for itself.

    Raises:
        DocumentError: Nothing is there, nothing of a known kind is, or too much is.
    """
    return _found(user_path(folder), settings or DocumentSettings())[0]


def _found(root: Path, settings: DocumentSettings) -> tuple[list[Path], list[DocumentError]]:
    """The files of `list_files`, and the folders that cannot be read."""
    kinds = ", ".join(SUFFIXES)
    if not root.exists():
        raise DocumentError(f"No such folder: {root}. Give a folder that holds documents ({kinds}).")
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise DocumentError(f"Cannot read {root}: its kind is not one of {kinds}.")
        return [root], []
    files, errors = _below(root, settings)
    if not files:
        raise DocumentError(f"No documents in {root}: looked for {kinds} in it and the folders below.")
    return files, errors


def _below(root: Path, settings: DocumentSettings) -> tuple[list[Path], list[DocumentError]]:
    """Files of a known kind below a folder, sorted, and the folders that cannot be read. Links are followed, each
    folder is entered once.
    """
    files: list[Path] = []
    errors: list[OSError] = []
    entered: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, followlinks=True, onerror=errors.append):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            below.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            try:
                if not path.is_file():
                    continue
            except OSError as error:
                errors.append(error)
                continue
            files.append(path)
            if len(files) > settings.max_files:
                raise DocumentError(
                    f"{root} holds more than {settings.max_files} documents: give a smaller folder or raise max_files."
                )
    return sorted(files), [DocumentError(f"Cannot read {one.filename}: {one.strerror or one}.") for one in errors]


def read_document(path: str | Path, *, name: str | None = None, settings: DocumentSettings | None = None) -> Document:
    """One file as plain text.

    Args:
        path: A file of a kind in `SUFFIXES`.
        name: `Document.name`; the file's name by default.
        settings: Limits.

    Raises:
        DocumentError: The file cannot be read, is too large, is not what its name says, or holds no text.
        MissingDependencyError: A PDF without pypdf installed.
    """
    settings = settings or DocumentSettings()
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > settings.max_file_bytes:
            raise DocumentError(
                f"{path} has {size} bytes, more than the limit of {settings.max_file_bytes}: "
                "split it or raise max_file_bytes."
            )
        kind = path.suffix.lower()
        if kind == ".pdf":
            title, text = "", _pdf_text(path)
        elif kind in (".html", ".htm"):
            title, text = _html_text(path)
        elif kind in SUFFIXES:
            title, text = _headed_text(_decode(path), markdown=kind != ".txt")
        else:
            raise DocumentError(f"Cannot read {path}: its kind is not one of {', '.join(SUFFIXES)}.")
    except OSError as error:
        raise DocumentError(f"Cannot read {path}: {error.strerror or error}.") from error
    text = _tidy(text)
    if not text:
        raise DocumentError(f"{path} holds no text{' (a scanned PDF needs OCR first)' if kind == '.pdf' else ''}.")
    return Document(name or path.name, " ".join(title.split()) or path.stem, text)


def read_folder(
    folder: str | Path, settings: DocumentSettings | None = None
) -> tuple[list[Document], list[DocumentError]]:
    """Every document below a folder, and one error for each that was left out because it could not be read.

    Raises:
        DocumentError: See `list_files`; or not one document could be read, with the first reason.
    """
    root = user_path(folder)
    documents: list[Document] = []
    files, left_out = _found(root, settings or DocumentSettings())
    for path in files:
        name = path.name if root.is_file() else path.relative_to(root).as_posix()
        try:
            documents.append(read_document(path, name=name, settings=settings))
        except DocumentError as error:
            left_out.append(error)
    if not documents:
        others = f" ({len(left_out) - 1} more could not be read either)" if len(left_out) > 1 else ""
        raise DocumentError(f"{left_out[0]}{others}")
    return documents, left_out


def split_document(document: Document, settings: DocumentSettings | None = None) -> list[Passage]:
    """The document as passages of about `chunk_words` words, each with the document's title and the id
    `name#number`.
    """
    limit = (settings or DocumentSettings()).chunk_words
    chunks: list[list[str]] = []
    room = 0
    for piece in _pieces(document.text, limit):
        words = len(word_spans(piece))
        if words > room:
            chunks.append([])
            room = limit
        chunks[-1].append(piece)
        room -= words
    return [
        Passage(" ".join(chunk), title=document.title, id=f"{document.name}#{i}") for i, chunk in enumerate(chunks, 1)
    ]


def _pieces(text: str, limit: int) -> Iterator[str]:
    """Sentences; those longer than `limit` words are cut."""
    for paragraph in text.split("\n\n"):
        whole = " ".join(paragraph.split())
        for first, last in sentence_spans(whole):
            sentence = whole[first:last]
            words = word_spans(sentence)
            for start in range(0, len(words), limit):
                part = words[start : start + limit]
                yield sentence[part[0][0] : part[-1][1]]


def _decode(path: Path) -> str:
    """UTF-8 or UTF-16 by its mark; else what an HTML page says of itself, else Windows' western encoding."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return data.decode("utf-32", errors="replace")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        raise DocumentError(f"{path} is not a text file: it holds zero bytes. Save it as UTF-8 text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        declared = _HTML_CHARSET.search(data[:2048]) or _XML_ENCODING.match(data[:2048])
    label = declared[1].decode("ascii").lower() if declared else "cp1252"
    try:
        return data.decode(_ENCODINGS.get(label, label), errors="replace")
    except (LookupError, UnicodeError):  # no encoding of that name, or one for something else than pages
        return data.decode("cp1252", errors="replace")


def _headed_text(text: str, *, markdown: bool) -> tuple[str, str]:
    """Title and the rest: the first Markdown heading, or a short first line that stands alone."""
    text = text.replace("\r\n", "\n").lstrip()
    if markdown:
        return _markdown_text(text)
    first, _, rest = text.partition("\n")
    first = first.strip()
    alone = rest.strip() and not rest.split("\n", 1)[0].strip()
    if alone and len(first) <= _HEADING_CHARACTERS and not first.endswith((".", "!", "?", ":", ",", ";")):
        return first, rest
    return "", text


def _markdown_text(text: str) -> tuple[str, str]:
    """Title and the rest: the first heading, else what the front matter says. In blocks of code nothing is one."""
    front = _FRONT_MATTER.match(text)
    said = _FRONT_TITLE.search(front.group()) if front else None
    title, lines, fence = "", [""], None
    for line in text[front.end() if front else 0 :].split("\n"):
        if mark := _FENCE.match(line):
            fence = mark[1][:3] if fence is None else None if mark[1].startswith(fence) else fence
        heading = None if fence else _MARKDOWN_HEADING.match(line)
        if heading is None and fence is None and _UNDERLINE.fullmatch(line) and lines[-1].strip():
            found = lines.pop().strip()
        elif heading is not None:
            found = heading.group(1)
        else:
            lines.append(line)
            continue
        lines += ["", found, ""] if title else [""]
        title = title or found
    return title or (said.group(1).strip("\"' ") if said else ""), "\n".join(lines)


def _tidy(text: str) -> str:
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.replace("\x00", " ")))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


class _HtmlText(HTMLParser):
    """Visible text of a page; block elements end a paragraph."""

    _INVISIBLE = frozenset({"script", "style", "noscript", "template", "svg"})
    _INLINE = frozenset({
        "a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "ins",
        "kbd",
        "label", "mark", "nobr", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt",
        "u", "var", "wbr",
    })  # fmt: skip

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.title: list[str] = []
        self.heading: list[str] = []
        self._hidden: str | None = None
        self._into: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden is not None:
            return
        if tag in self._INVISIBLE:
            self._hidden = tag
        elif tag == "title":
            self._into = self.title
        elif tag == "h1" and not self.heading:
            self._into = self.heading
        elif tag == "br":
            (self.text if self._into is None else self._into).append("\n")
        elif tag not in self._INLINE:
            self._into = None  # a heading that was never closed ends where the next block begins
            self.text.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden is not None:
            self._hidden = None if tag == self._hidden else self._hidden
        elif tag not in self._INLINE:
            self._into = None
            self.text.append("\n\n")

    def handle_data(self, data: str) -> None:
        if self._hidden is None:
            (self.text if self._into is None else self._into).append(data if data.strip() else " ")


def _html_text(path: Path) -> tuple[str, str]:
    parser, page = _HtmlText(), _decode(path)
    try:
        parser.feed(page)
        parser.close()
    except (AssertionError, ValueError) as error:  # the standard parser's own, on markup that is none
        raise DocumentError(f"{path} cannot be read as HTML ({error}). Mend it, or save it as text.") from error
    return "".join(parser.heading).strip() or "".join(parser.title).strip(), "".join(parser.text)


def _pdf_text(path: Path) -> str:
    from pypdf import PdfReader

    # pypdf raises many kinds of errors on damaged files, plain ValueError and KeyError among them.
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError(f"{path} is protected by a password: save a copy without one.")
        return "\n\n".join(page.extract_text() for page in reader.pages)
    except DocumentError:
        raise
    except Exception as error:
        raise DocumentError(
            f"{path} cannot be read as a PDF ({type(error).__name__}: {error}). Open and re-save it."
        ) from error
