"""Invented proper names and values.

Proper words come from pools of made-up words, each of which the tokenizer learns as one token: a reader of this size
can tell names apart by their words, not by the spelling of word pieces. An entity's name combines words, and the whole
name belongs to exactly one split by a hash of its letters: no entity of dev or test occurs in training, though its
words do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal
from zlib import crc32

Split = Literal["train", "dev", "test"]

_ONSETS = [
    "b", "br", "bl", "c", "cr", "cl", "d", "dr", "f", "fl", "fr", "g", "gr", "gl", "h", "j", "k", "kl", "kn", "l", "m",
    "n", "p", "pl", "pr", "qu", "r", "s", "sc", "sh", "sk", "sl", "sn", "sp", "st", "t", "th", "tr", "tw", "v", "w",
    "wh", "z",
]  # fmt: skip
_NUCLEI = ["a", "e", "i", "o", "u", "a", "e", "o", "ai", "ea", "ee", "oa", "oo", "ou"]
_MIDDLES = [
    "b", "d", "f", "g", "k", "l", "ll", "m", "n", "nd", "nt", "p", "r", "rl", "rn", "rt", "s", "ss", "st", "t", "v",
    "z", "lb", "ld", "lm", "mb", "nk", "rd", "rk", "rm", "sk", "lt", "th",
]  # fmt: skip
_SURNAME_ENDS = [
    "er", "en", "ard", "ell", "ett", "ow", "ick", "ing", "am", "an", "as", "by", "ley", "man", "son", "ford", "well",
    "wood", "field", "worth", "ton", "stone", "more", "ridge", "berg", "mann", "sen",
]  # fmt: skip
_TOWN_ENDS = [
    "bury", "ham", "ford", "ton", "wick", "stead", "minster", "mouth", "haven", "port", "burgh", "dale", "holm",
    "moor", "bridge", "field", "gate", "stow", "combe", "by", "thorpe", "ness", "vik", "sund",
]  # fmt: skip
_GIVEN_ENDS = [
    "a", "ia", "ina", "elle", "is", "yn", "ette", "o", "us", "ian", "ric", "ard", "in", "en", "as", "eth", "or", "im",
    "ey", "i", "on", "ya",
]  # fmt: skip
_BRAND_ENDS = [
    "ex", "ix", "on", "or", "ia", "is", "ax", "um", "us", "el", "ar", "an", "ic", "ent", "yn", "era", "ova", "ium",
    "ero", "ant",
]  # fmt: skip

_COMPANY_KINDS = [
    "Logistics", "Foods", "Instruments", "Textiles", "Institute", "Press", "Systems", "Engineering", "Motors",
    "Chemicals", "Shipping", "Bank", "Insurance", "Pharma", "Robotics", "Energy", "Media", "Airways", "Timber",
    "Dairy", "Optics", "Furniture", "Mining", "Software", "Railways", "Glassworks",
]  # fmt: skip
_INCIDENT_KINDS = [
    "bridge collapse", "power outage", "train crash", "factory fire", "gas leak", "dam failure", "data breach",
    "water shortage", "tunnel flood", "radio blackout", "warehouse fire", "ferry accident", "landslide",
    "chemical spill", "network failure",
]  # fmt: skip
_POLICY_KINDS = [
    "Travel Policy", "Expense Policy", "Leave Policy", "Security Policy", "Refund Policy", "Training Policy",
    "Parking Policy", "Housing Policy", "Equipment Policy", "Catering Policy", "Research Policy", "Print Policy",
]  # fmt: skip
_PRODUCT_KINDS = [
    "drill", "camera", "lamp", "tablet", "radio", "scanner", "speaker", "scooter", "printer", "vacuum", "heater",
    "watch",
]  # fmt: skip
_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
_GOODS = [
    "garden tools", "wool blankets", "sailing boats", "ceiling fans", "bicycle bells", "paper lamps", "kitchen knives",
    "rubber boots", "glass bottles", "steel cables", "tin toys", "oak tables", "leather gloves", "water pumps",
    "church organs", "fishing nets", "copper wire", "milk powder", "pocket watches", "hiking tents", "brass buttons",
    "window frames", "coffee mills", "wine barrels", "ski boots", "cotton shirts", "radio masts", "bread ovens",
    "paint brushes", "cargo bikes", "silver spoons", "plastic pipes", "felt hats", "wax candles",
]  # fmt: skip
_CAUSES = [
    "a broken valve", "a burnt fuse", "heavy snow", "a loose cable", "a faulty sensor", "a typing error",
    "a rusty bolt", "a sudden storm", "a worn bearing", "an expired certificate", "a lightning strike",
    "a blocked drain", "a wrong label", "a cracked pipe", "an untested update", "a tired operator", "a swarm of birds",
    "an open gate", "a failed pump", "a missing screw", "thick fog", "a leaking tank", "a stuck switch", "an old map",
    "a forgotten password", "a weak beam", "a frozen lock", "a dead battery",
]  # fmt: skip
_GROUPS = [
    "night guards", "part-time staff", "visiting scholars", "all drivers", "new interns", "senior managers",
    "field engineers", "kitchen workers", "temporary staff", "external auditors", "ship crews", "shop assistants",
    "retired employees", "laboratory staff", "volunteer helpers", "board members", "cleaning staff", "sales agents",
    "remote workers", "warehouse staff", "student workers",
]  # fmt: skip
_FIELDS = [
    "marine biology", "Roman law", "soil chemistry", "folk music", "bridge design", "tax history", "plant genetics",
    "cave painting", "rail safety", "optical physics", "number theory", "child nutrition", "Baltic trade",
    "glacier ice", "bird migration", "medieval coins", "water policy", "speech therapy", "crop insurance",
    "desert insects", "voting systems", "early printing", "bone surgery", "cloud physics",
]  # fmt: skip
_AWARD_KINDS = ["Medal", "Prize", "Award", "Ribbon", "Cup", "Scholarship"]
_FESTIVAL_KINDS = [
    "Lantern Festival", "Harvest Fair", "Jazz Days", "Kite Festival", "Book Fair", "Boat Parade", "Film Week",
    "Apple Market",
]  # fmt: skip


def split_of(word: str) -> Split:
    """The one split that a proper word belongs to: 80% train, 8% dev, 12% test, by a hash of its letters."""
    bucket = crc32(word.lower().encode()) % 100
    return "train" if bucket < 80 else "dev" if bucket < 88 else "test"


def _pool(ends: list[str], size: int, seed: int) -> tuple[str, ...]:
    """Made-up words, always the same ones, no two of any pool alike."""
    rng = random.Random(seed)
    words: dict[str, None] = {}
    while len(words) < size:
        word = (rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_MIDDLES) + rng.choice(ends)).capitalize()
        if 4 <= len(word) <= 10 and word not in _taken:
            _taken.add(word)
            words[word] = None
    return tuple(words)


_taken: set[str] = set()
_SURNAMES = _pool(_SURNAME_ENDS, 450, 1)
_GIVEN_NAMES = _pool(_GIVEN_ENDS, 250, 2)
_TOWNS = _pool(_TOWN_ENDS, 350, 3)
_BRANDS = _pool(_BRAND_ENDS, 350, 4)
PROPER_WORDS = (*_SURNAMES, *_GIVEN_NAMES, *_TOWNS, *_BRANDS)


def _of_split(split: Split, make: Callable[[], str]) -> str:
    while True:
        name = make()
        if split_of(name) == split:
            return name


def surname(rng: random.Random, split: Split) -> str:
    """A family name; shared by the splits like every single word."""
    return rng.choice(_SURNAMES)


def given_name(rng: random.Random, split: Split) -> str:
    """A given name."""
    return rng.choice(_GIVEN_NAMES)


def town(rng: random.Random, split: Split) -> str:
    """A town."""
    return rng.choice(_TOWNS)


def brand(rng: random.Random, split: Split) -> str:
    """A brand name."""
    return rng.choice(_BRANDS)


def person(rng: random.Random, split: Split) -> str:
    """Given name and surname."""
    return _of_split(split, lambda: f"{given_name(rng, split)} {surname(rng, split)}")


def organisation(rng: random.Random, split: Split) -> str:
    """A company, e.g. a proper word and its trade."""
    return _of_split(split, lambda: f"{rng.choice((surname, brand, town))(rng, split)} {rng.choice(_COMPANY_KINDS)}")


def product(rng: random.Random, split: Split) -> str:
    """Brand, model number and kind of device."""
    return _of_split(
        split, lambda: f"{brand(rng, split)} {rng.randrange(2, 100) * rng.choice((1, 10))} {rng.choice(_PRODUCT_KINDS)}"
    )


def incident(rng: random.Random, split: Split) -> str:
    """A place and what went wrong there."""
    return _of_split(split, lambda: f"{town(rng, split)} {rng.choice(_INCIDENT_KINDS)}")


def policy(rng: random.Random, split: Split) -> str:
    """Whose policy it is and on what."""
    return _of_split(split, lambda: f"{rng.choice((surname, town, brand))(rng, split)} {rng.choice(_POLICY_KINDS)}")


def release(rng: random.Random, split: Split) -> str:
    """A software name and its version."""
    return _of_split(split, lambda: f"{brand(rng, split)} {rng.randrange(1, 20)}.{rng.randrange(10)}")


def place(rng: random.Random, split: Split) -> str:
    """A town by its full name."""
    return _of_split(split, lambda: f"{surname(rng, split)} {town(rng, split)}")


ENTITY_NAMES: dict[str, Callable[[random.Random, Split], str]] = {
    "organisation": organisation,
    "product": product,
    "person": person,
    "incident": incident,
    "policy": policy,
    "release": release,
    "place": place,
}


def sibling_name(rng: random.Random, split: Split, kind: str, name: str) -> str:
    """A name that shares a part with `name`: what a retriever confuses it with."""
    words = name.split()

    def make() -> str:
        fresh = ENTITY_NAMES[kind](rng, split).split()
        return " ".join([words[0], *fresh[1:]] if rng.random() < 0.5 else [fresh[0], *words[1:]])

    return _of_split(split, make)


def _number(rng: random.Random) -> str:
    top = rng.choice((90, 900, 9_000, 90_000))
    return f"{rng.randrange(top // 9 + 2, top):,}"


def _date(rng: random.Random) -> str:
    return f"{rng.randrange(1, 29)} {rng.choice(_MONTHS)} {rng.randrange(1955, 2032)}"


_VALUES: dict[str, Callable[[random.Random, Split], str]] = {
    "year": lambda rng, split: str(rng.randrange(1820, 2020)),
    "date": lambda rng, split: _date(rng),
    "town": town,
    "person": person,
    "organisation": organisation,
    "count": lambda rng, split: _number(rng),
    "goods": lambda rng, split: rng.choice(_GOODS),
    "money": lambda rng, split: f"{_number(rng)} {rng.choice(('euros', 'dollars', 'crowns', 'pounds'))}",
    "weight": lambda rng, split: f"{rng.randrange(1, 40)}.{rng.randrange(1, 10)} {rng.choice(('kilograms', 'pounds'))}",
    "hours": lambda rng, split: f"{rng.randrange(2, 96)} {rng.choice(('hours', 'minutes'))}",
    "days": lambda rng, split: f"{rng.randrange(2, 60)} {rng.choice(('days', 'weeks', 'months'))}",
    "metres": lambda rng, split: f"{_number(rng)} metres",
    "field": lambda rng, split: rng.choice(_FIELDS),
    "cause": lambda rng, split: rng.choice(_CAUSES),
    "group": lambda rng, split: rng.choice(_GROUPS),
    "university": lambda rng, split: f"{town(rng, split)} {rng.choice(('University', 'College', 'Academy'))}",
    "award": lambda rng, split: f"{surname(rng, split)} {rng.choice(_AWARD_KINDS)}",
    "codename": lambda rng, split: brand(rng, split),
    "river": lambda rng, split: f"{given_name(rng, split)} River",
    "festival": lambda rng, split: f"{surname(rng, split)} {rng.choice(_FESTIVAL_KINDS)}",
}


def value(rng: random.Random, split: Split, kind: str) -> str:
    """A value of the given kind, e.g. a date or a person."""
    return _VALUES[kind](rng, split)


def year(rng: random.Random) -> str:
    """A year that no question asks about."""
    return str(rng.randrange(1950, 2024))
