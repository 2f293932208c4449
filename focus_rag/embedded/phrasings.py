"""How facts are told and asked: `phrasings.toml`, cut into splits."""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from focus_rag.embedded.names import Split

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing that can be said of an entity, with the sentence forms of one split.

    Attributes:
        key: Its name among the attributes of that kind.
        value_kind: Kind of value, e.g. "date".
        questions: Ways to ask for it.
        forms: Ways to state it.
        past: Ways to state that it once had another value; empty if it never changes.
    """

    key: str
    value_kind: str
    questions: tuple[str, ...]
    forms: tuple[str, ...]
    past: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Phrasings:
    """All sentence forms of one split."""

    attributes: dict[str, tuple[Attribute, ...]]
    fillers: dict[str, tuple[str, ...]]
    leads: tuple[str, ...]


def _part(forms: list[str], split: Split, n_test: int = 1) -> tuple[str, ...]:
    """The forms of one split: the last `n_test` are test, the one before is dev, the rest train."""
    if not forms:
        return ()
    cut = len(forms) - n_test
    return tuple({"train": forms[: cut - 1], "dev": forms[cut - 1 : cut], "test": forms[cut:]}[split])


@cache
def phrasings(split: Split) -> Phrasings:
    """The sentence forms of `split`; no form belongs to two splits."""
    table = tomllib.loads(files("focus_rag.embedded").joinpath("phrasings.toml").read_text(encoding="utf-8"))
    attributes: dict[str, list[Attribute]] = {}
    for row in table["attribute"]:
        attributes.setdefault(row["type"], []).append(
            Attribute(
                key=row["key"],
                value_kind=row["kind"],
                questions=_part(row["questions"], split),
                forms=_part(row["forms"], split, n_test=2),
                past=_part(row.get("past", []), split),
            )
        )
    fillers = dict(table["filler"])
    leads = _part(fillers.pop("lead"), split)
    return Phrasings(
        attributes={kind: tuple(rows) for kind, rows in attributes.items()},
        fillers={kind: _part(rows, split, n_test=2) for kind, rows in fillers.items()},
        leads=("", "", *leads) if split != "train" else leads,
    )


def expand(rng: random.Random, form: str) -> str:
    """Resolve the free choices `[a|b]` of a form."""
    return _CHOICE.sub(lambda found: rng.choice(found.group(1).split("|")), form)
