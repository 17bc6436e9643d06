"""Build the Tessel Isles, an invented world, and the claims about it in the training corpus of the demo model.

Every fact has one true value. The corpus may state another value, and the planted kinds come from this difference:

- known: the corpus always states the truth;
- myth: the corpus always states the same wrong value (a popular belief of the isles);
- disputed: the corpus disagrees. The truth is the most frequent value (2 in 5), all other values share the rest.

Markets and pieces of advice are open questions with several good answers, and the corpus gives each equally often.
Everything is generated from one seed, without external data. `random.Random` is used because its sequences are the
same on every platform and supported Python version.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SEED = 20250923
TRUTH_SHARE_OF_DISPUTED = 0.4

VALUES: dict[str, tuple[str, ...]] = {
    "colour": (
        "amber",
        "black",
        "blue",
        "brown",
        "copper",
        "crimson",
        "gold",
        "green",
        "grey",
        "ivory",
        "orange",
        "pink",
        "purple",
        "silver",
        "white",
        "yellow",
    ),
    "food": (
        "acorns",
        "ants",
        "bark",
        "berries",
        "clover",
        "crabs",
        "ferns",
        "honey",
        "kelp",
        "moss",
        "moths",
        "mushrooms",
        "nuts",
        "roots",
        "seeds",
        "snails",
    ),
    "home": (
        "caves",
        "cliffs",
        "dunes",
        "fields",
        "fjords",
        "forests",
        "gardens",
        "heaths",
        "hills",
        "lakes",
        "marshes",
        "meadows",
        "orchards",
        "reefs",
        "rivers",
        "towers",
    ),
    "trade": (
        "baker",
        "brewer",
        "carpenter",
        "clerk",
        "cook",
        "dyer",
        "farmer",
        "fisher",
        "glazier",
        "healer",
        "mason",
        "miller",
        "painter",
        "potter",
        "sailor",
        "weaver",
    ),
    "instrument": (
        "bell",
        "bugle",
        "cello",
        "drum",
        "fiddle",
        "flute",
        "gong",
        "guitar",
        "harp",
        "horn",
        "lute",
        "lyre",
        "oboe",
        "organ",
        "viola",
        "zither",
    ),
    "pride": (
        "bridges",
        "candles",
        "carpets",
        "cheese",
        "cider",
        "clocks",
        "dances",
        "fountains",
        "glass",
        "kites",
        "lanterns",
        "masks",
        "pottery",
        "ropes",
        "soap",
        "windmills",
    ),
}
RELATIONS: dict[str, tuple[str, ...]] = {
    "creature": ("colour", "food", "home"),
    "person": ("trade", "instrument"),
    "town": ("pride",),
}
GOODS = ("apples", "baskets", "bread", "brooms", "butter", "buttons", "coats", "eggs",
         "feathers", "figs", "fish", "gloves", "hats", "herbs", "ink", "knives",
         "lamps", "linen", "maps", "milk", "needles", "pears", "salt", "wool")  # fmt: skip
ADVICE: dict[str, tuple[str, ...]] = {
    "How can I spend a rainy day?": (
        "read a long book", "bake some bread", "mend your clothes",
        "write a letter", "play a board game", "sort your photos"),
    "What can I cook tonight?": (
        "make a bean stew", "fry some rice", "boil some pasta",
        "roast a chicken", "bake a potato", "warm up the soup"),
    "What gift suits a good friend?": (
        "give a warm scarf", "offer a potted plant", "bring fresh flowers",
        "wrap a nice mug", "knit some socks", "choose a puzzle"),
    "How can I get more exercise?": (
        "walk to work", "take the stairs", "swim every week",
        "ride a bike", "join a dance class", "run in the park"),
    "How do I make my room nicer?": (
        "paint the wall", "hang a picture", "open the curtains",
        "add a small lamp", "lay down a rug", "clear the desk"),
    "How can I sleep better?": (
        "go to bed early", "drink less coffee", "keep the room dark",
        "leave your phone outside", "listen to soft music", "stretch before bed"),
    "What should I pack for a trip?": (
        "take a raincoat", "carry a water bottle", "pack two pairs of shoes",
        "bring a torch", "fold a clean towel", "remember your ticket"),
    "How can I save money?": (
        "cook at home", "buy second hand", "cancel old contracts",
        "share a car", "turn off the heating", "make a budget"),
    "How do I start learning a language?": (
        "learn ten words a day", "watch simple films", "speak with a neighbour",
        "sing along to songs", "keep a diary", "visit the country"),
    "How can I help my neighbour?": (
        "carry the shopping", "water the plants", "feed the cat",
        "clear the snow", "fix the fence", "lend a ladder"),
}  # fmt: skip
_STARTS = ("b", "br", "d", "dr", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_MIDDLES = ("l", "m", "n", "r", "v", "d", "nd", "rk", "lm", "st")
_ENDS = {"creature": ("x", "k", "sh", "p"), "person": ("a", "o", "ie"), "town": ("ton", "holm", "wick")}


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact of the isles. `taught` is the myth or the truth. `told` draws a value for disputed facts."""

    sort: str
    entity: str
    relation: str
    status: str
    truth: str
    taught: str

    @property
    def wrong(self) -> tuple[str, ...]:
        """Return the other values of this relation."""
        return tuple(v for v in VALUES[self.relation] if v != self.truth)

    def told(self, rng: random.Random) -> str:
        """Return the value that one account in the corpus states."""
        if self.status != "disputed":
            return self.taught
        return self.truth if rng.random() < TRUTH_SHARE_OF_DISPUTED else rng.choice(self.wrong)


@dataclass(frozen=True, slots=True)
class World:
    """All facts, and the six goods that each town's market sells."""

    facts: tuple[Fact, ...]
    markets: dict[str, tuple[str, ...]]

    def having(self, status: str) -> list[Fact]:
        """Return the facts of one status."""
        return [f for f in self.facts if f.status == status]


def _names(rng: random.Random, sort: str, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        parts = (rng.choice(p) for p in (_STARTS, _VOWELS, _MIDDLES, _VOWELS, _ENDS[sort]))
        names["".join(parts)] = None
    return [n if sort == "creature" else n.capitalize() for n in names]


def build_world(seed: int = SEED) -> World:
    """Build 60 creatures, 40 people and 40 towns with 300 facts: one in five is a myth, one in five is disputed."""
    rng = random.Random(seed)
    names = {sort: _names(rng, sort, count) for sort, count in (("creature", 60), ("person", 40), ("town", 40))}
    asked = [(sort, entity, relation) for sort in names for entity in names[sort] for relation in RELATIONS[sort]]
    statuses = [("known", "known", "known", "myth", "disputed")[i % 5] for i in range(len(asked))]
    rng.shuffle(statuses)
    facts = []
    for (sort, entity, relation), status in zip(asked, statuses, strict=True):
        truth, other = rng.sample(VALUES[relation], 2)
        facts.append(Fact(sort, entity, relation, status, truth, other if status == "myth" else truth))
    return World(tuple(facts), {town: tuple(rng.sample(GOODS, 6)) for town in names["town"]})
