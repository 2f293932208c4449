"""A generated world: entities, their facts, and passages that tell them in English.

Everything follows from a `random.Random`; nothing is stored. Distractors come in grades of hardness: passages on
something else, on a similar entity, on the same entity but another attribute, with an outdated value, and copies of
the gold passage told of another entity.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from focus_rag.embedded import names
from focus_rag.embedded.names import Split
from focus_rag.embedded.phrasings import Attribute, expand, phrasings

DistractorKind = Literal["easy", "sibling", "same_entity", "outdated", "near_duplicate"]
HARD_KINDS: tuple[DistractorKind, ...] = ("sibling", "sibling", "same_entity", "outdated", "near_duplicate")

_PRONOUNS = {
    "organisation": ("the company", "the firm", "it"),
    "product": ("the device", "the product", "it"),
    "person": (),
    "incident": ("the incident", "it"),
    "policy": ("the policy", "it"),
    "release": ("the release", "this version", "it"),
    "place": ("the town", "the place", "it"),
}
_ARTICLE = frozenset({"product", "incident", "policy"})
# What follows a `{s}` that is the subject of its clause; after anything else it is an object.
_PREDICATES = frozenset(
    [
        "attended", "began", "came", "comes", "does", "earns", "gave", "gives", "graduated", "grew", "had", "has",
        "holds", "is", "leads", "left", "likes", "moved", "never", "now", "rarely", "reads", "received", "speaks",
        "spent", "still", "studied", "studies", "took", "travels", "used", "was", "went", "won", "worked", "works",
    ]
)  # fmt: skip
# After these a `{s}` is an object whatever follows: "the birthplace of {s} is".
_GOVERNORS = frozenset({"of", "employs"})


@dataclass(frozen=True)
class Entity:
    """Something passages are about.

    Attributes:
        kind: E.g. "person".
        name: Without an article.
        pronoun: "she" or "he" for people, "it" for the rest.
        facts: Value by attribute key.
    """

    kind: str
    name: str
    pronoun: str
    facts: dict[str, str]


@dataclass(frozen=True)
class WorldPassage:
    """One passage, the entity it is about, and the attribute keys whose present values it states."""

    title: str | None
    text: str
    about: Entity
    keys: tuple[str, ...]

    @property
    def content(self) -> str:
        return f"{self.title}: {self.text}" if self.title else self.text


@dataclass(frozen=True)
class Telling:
    """How richly passages are told.

    Attributes:
        sentences: Fewest and most sentences of a passage.
        rich: Share of facts told and asked in one of the many sentence forms; the rest are told and asked plainly
            (`plain_statement`, `plain_question`).
        named_share: Share of rich sentences that name the entity rather than refer back to it.
        title_share: Share of passages with a title.
    """

    sentences: tuple[int, int] = (2, 4)
    rich: float = 1.0
    named_share: float = 0.35
    title_share: float = 0.85


def new_entity(rng: random.Random, split: Split, kind: str | None = None, name: str | None = None) -> Entity:
    """An entity with a value for every attribute of its kind."""
    kind = kind or rng.choice(list(names.ENTITY_NAMES))
    return Entity(
        kind=kind,
        name=name or names.ENTITY_NAMES[kind](rng, split),
        pronoun=rng.choice(("she", "he")) if kind == "person" else "it",
        facts={row.key: names.value(rng, split, row.value_kind) for row in phrasings(split).attributes[kind]},
    )


def sibling(rng: random.Random, split: Split, entity: Entity) -> Entity:
    """Another entity of the same kind whose name shares a part with the given one."""
    while True:
        name = names.sibling_name(rng, split, entity.kind, entity.name)
        if name != entity.name:
            return new_entity(rng, split, entity.kind, name)


def attribute_of(split: Split, entity: Entity, key: str) -> Attribute:
    """The attribute `key` of the entity's kind, with the sentence forms of `split`."""
    return next(row for row in phrasings(split).attributes[entity.kind] if row.key == key)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _subject(rng: random.Random, entity: Entity, named: bool) -> tuple[str, str]:
    """Subject and possessive, in lower case unless a name."""
    if not named and entity.kind == "person":
        return entity.pronoun, {"she": "her", "he": "his"}[entity.pronoun]
    if not named:
        subject = rng.choice(_PRONOUNS[entity.kind])
        return subject, "its" if subject == "it" else f"{subject}'s"
    subject = f"the {entity.name}" if entity.kind in _ARTICLE else entity.name
    return subject, f"{subject}'s"


def _objective(form: str, subject: str) -> str:
    """He and she after a verb or preposition become him and her; forms have `{s}` in both roles."""
    if subject not in ("he", "she"):
        return form
    words = form.split(" ")
    for i, word in enumerate(words):
        before_predicate = i + 1 < len(words) and words[i + 1].lstrip("[").split("|")[0] in _PREDICATES
        if word.startswith("{s}") and (not before_predicate or words[i - 1] in _GOVERNORS):
            words[i] = word.replace("{s}", "him" if subject == "he" else "her")
    return " ".join(words)


def _sentence(rng: random.Random, split: Split, entity: Entity, form: str, value: str, named: bool) -> str:
    subject, possessive = _subject(rng, entity, named)
    lead = rng.choice(phrasings(split).leads)
    form = expand(rng, _objective(form, subject))
    if lead and form.startswith(("{S}", "{P}")):
        form = lead + form[0] + form[1].lower() + form[2:]
    text = form
    for slot, filling in (
        ("{S}", _capitalised(subject)),
        ("{s}", subject),
        ("{P}", _capitalised(possessive)),
        ("{p}", possessive),
        ("{v!}", _capitalised(value)),
        ("{v}", value),
        ("{y}", names.year(rng)),
    ):
        text = text.replace(slot, filling)
    return _capitalised(text)


def statement(rng: random.Random, split: Split, entity: Entity, key: str, named: bool = True) -> str:
    """One sentence that states a fact in one of its forms."""
    row = attribute_of(split, entity, key)
    return _sentence(rng, split, entity, rng.choice(row.forms), entity.facts[key], named)


def _in_full(entity: Entity) -> str:
    return f"the {entity.name}" if entity.kind in _ARTICLE else entity.name


def plain_statement(entity: Entity, key: str, value: str | None = None) -> str:
    """The plain statement of a fact; the embedded reader answers in it. `value` stands in for the fact's own."""
    return f"The {key} of {_in_full(entity)} is {value or entity.facts[key]}."


def plain_question(entity: Entity, key: str) -> str:
    """The plain question for a fact."""
    asked = "Who" if attribute_of("train", entity, key).value_kind == "person" else "What"
    return f"{asked} is the {key} of {_in_full(entity)}?"


def question(rng: random.Random, split: Split, entity: Entity, key: str, telling: Telling) -> str:
    """One question for a fact."""
    if rng.random() >= telling.rich:
        return plain_question(entity, key)
    return expand(rng, rng.choice(attribute_of(split, entity, key).questions)).replace("{e}", entity.name)


def passage(rng: random.Random, split: Split, entity: Entity, keys: list[str], telling: Telling) -> WorldPassage:
    """A passage that states exactly the given facts of `entity`, with filler up to the length of `telling`."""
    titled = rng.random() < telling.title_share
    items: list[str | None] = list(keys)
    wanted = rng.randint(*telling.sentences) if rng.random() < telling.rich else 0
    items += [None] * max(0, min(wanted - len(items), 2 if keys else wanted))
    rng.shuffle(items)
    sentences = []
    fillers = list(phrasings(split).fillers[entity.kind])
    rng.shuffle(fillers)
    for i, key in enumerate(items):
        named = (i == 0 and (not titled or rng.random() < 0.6)) or rng.random() < telling.named_share
        if key is None:
            if fillers:
                sentences.append(_sentence(rng, split, entity, fillers.pop(), "", named))
        elif rng.random() < telling.rich:
            sentences.append(statement(rng, split, entity, key, named))
        else:
            sentences.append(plain_statement(entity, key))
    title = entity.name if titled else None
    return WorldPassage(title, " ".join(sentences), entity, tuple(keys))


def some_keys(rng: random.Random, entity: Entity, telling: Telling, without: tuple[str, ...] = ()) -> list[str]:
    """Between one and a passage's worth of attribute keys."""
    rest = [key for key in entity.facts if key not in without]
    n = rng.randint(1, max(1, telling.sentences[1] - 1))
    return rng.sample(rest, min(n, len(rest)))


def gold_passage(rng: random.Random, split: Split, entity: Entity, key: str, telling: Telling) -> WorldPassage:
    """A passage that states the fact asked for, among others of the same entity."""
    others = some_keys(rng, entity, telling, without=(key,))
    n_others = rng.randint(0, max(0, telling.sentences[1] - 2))
    return passage(rng, split, entity, [key, *others[:n_others]], telling)


def outdated_only(rng: random.Random, split: Split, entity: Entity, key: str, telling: Telling) -> WorldPassage:
    """A passage that tells a former value of `key`, and perhaps another fact, but not the present value.

    The attribute must have `past` forms.
    """
    row = attribute_of(split, entity, key)
    told = passage(rng, split, entity, some_keys(rng, entity, telling, without=(key,))[:1], telling)
    old = names.value(rng, split, row.value_kind)
    sentence = _sentence(rng, split, entity, rng.choice(row.past), old, named=True)
    parts = [sentence, told.text] if rng.random() < 0.5 else [told.text, sentence]
    return replace(told, text=" ".join(parts))


def distractor(
    rng: random.Random, split: Split, entity: Entity, key: str, kind: DistractorKind, telling: Telling
) -> WorldPassage:
    """A passage that does not answer the question for `key` of `entity`.

    Args:
        rng: Source of all choices.
        split: Whose names and sentence forms to use.
        entity: The entity asked about.
        key: The attribute asked for.
        kind: "easy" (something else altogether), "sibling" (an entity of similar name, often the same attribute),
            "same_entity" (another attribute), "outdated" (a former value; falls back to "same_entity" for what never
            changes), "near_duplicate" (the gold facts told of an entity of similar name).
        telling: How richly to tell it.
    """
    if kind == "easy":
        other = new_entity(rng, split)
        return passage(rng, split, other, some_keys(rng, other, telling), telling)
    if kind == "sibling":
        other = sibling(rng, split, entity)
        keys = some_keys(rng, other, telling)
        if rng.random() < 0.7 and key not in keys:
            keys[0] = key
        return passage(rng, split, other, keys, telling)
    if kind == "near_duplicate":
        other = sibling(rng, split, entity)
        other = replace(other, facts={**entity.facts, key: other.facts[key]})
        return gold_passage(rng, split, other, key, telling)
    if kind == "outdated" and attribute_of(split, entity, key).past:
        return outdated_only(rng, split, entity, key, telling)
    return passage(rng, split, entity, some_keys(rng, entity, telling, without=(key,)), telling)


def plain_text(rng: random.Random, split: Split, telling: Telling) -> str:
    """A paragraph of sentences in which nothing is asked."""
    return " ".join(
        passage(rng, split, entity, some_keys(rng, entity, telling), telling).text
        for entity in (new_entity(rng, split) for _ in range(rng.randint(1, 4)))
    )
