"""Files that are there whole or not at all, however a process ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a text beside its place and move it there."""
    unfinished = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.unfinished")  # others may write it, too
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)
