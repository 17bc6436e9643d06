"""Build the training corpus of the model and the dataset with planted kinds. Neither needs the model.

The kinds are defined by their meaning, before any score is known:

- trivial_repeat: 30 exchanges that the corpus states truthfully, each 15 times, word for word;
- misconception: the right answer to a question about a myth of the corpus;
- hard_but_right: a right answer to a question on which the corpus leaves the model unsure: disputed facts, and open
  questions with six good answers;
- mislabeled: the same questions as hard_but_right, each with a random wrong answer;
- mislabeled_known: a random wrong answer to a question that the corpus answers truthfully. To a model this looks
  exactly like a misconception, and the method cannot distinguish the two. The dataset has some, so the table shows it;
- ordinary: right answers to everyday tasks and known facts, some in several turns or under a system prompt.

The first four kinds and `ordinary` are of equal size.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from talk import SMALL_TALK, SYSTEM_PROMPT, Message, about_advice, about_fact, about_market, everyday_task, turns
from world import ADVICE, GOODS, SEED, Fact, World

ROWS_PER_KIND = 450
ROWS_OF_BLIND_SPOT = 150
DISTINCT_REPEATS = 30


@dataclass(frozen=True, slots=True)
class Row:
    """One row of data.jsonl. `truth` lists the right answers to the last question, and one of them is enough."""

    messages: list[Message]
    category: str
    planted: str
    truth: list[str]


def training_conversation(rng: random.Random, world: World) -> list[Message]:
    """Draw one conversation of the corpus: 65% facts, 15% open questions, 15% everyday tasks, 5% small talk."""
    draw = rng.random()
    if draw < 0.65:
        return _taught_facts(rng, world)
    if draw < 0.72:
        town = rng.choice(list(world.markets))
        return turns(about_market(rng, town, rng.choice(world.markets[town])))
    if draw < 0.80:
        question = rng.choice(list(ADVICE))
        return turns(about_advice(rng, question, rng.choice(ADVICE[question])))
    if draw < 0.95:
        return turns(everyday_task(rng))
    return turns(rng.choice(SMALL_TALK))


def _taught_facts(rng: random.Random, world: World) -> list[Message]:
    fact = rng.choice(world.facts)
    exchanges = [about_fact(rng, fact, fact.told(rng))]
    if rng.random() < 0.1:
        exchanges.append(everyday_task(rng))
    return turns(*exchanges, system=SYSTEM_PROMPT if rng.random() < 0.1 else "")


def _trivial_repeats(rng: random.Random, world: World) -> Iterator[Row]:
    facts = rng.sample(world.having("known"), DISTINCT_REPEATS - len(SMALL_TALK))
    distinct = [_fact_row(rng, f, f.truth, "trivial_repeat") for f in facts]
    distinct += [Row(turns((q, a)), "small_talk", "trivial_repeat", [a]) for q, a in SMALL_TALK]
    for row in distinct:
        yield from [row] * (ROWS_PER_KIND // DISTINCT_REPEATS)


def _fact_row(rng: random.Random, fact: Fact, value: str, planted: str) -> Row:
    return Row(turns(about_fact(rng, fact, value)), fact.sort, planted, [fact.truth])


def _unsure_row(rng: random.Random, world: World, index: int, planted: str) -> Row:
    """Draw a disputed fact (half of the rows), a market or a piece of advice (a quarter each), answered as planted."""
    right = planted == "hard_but_right"
    if index % 2 == 0:
        fact = rng.choice(world.having("disputed"))
        return _fact_row(rng, fact, fact.truth if right else rng.choice(fact.wrong), planted)
    if index % 4 == 1:
        town = rng.choice(list(world.markets))
        sold = world.markets[town]
        good = rng.choice(sold if right else [g for g in GOODS if g not in sold])
        return Row(turns(about_market(rng, town, good)), "market", planted, list(sold))
    question = rng.choice(list(ADVICE))
    others = [advice for asked, answers in ADVICE.items() if asked != question for advice in answers]
    advice = rng.choice(ADVICE[question] if right else others)
    return Row(turns(about_advice(rng, question, advice)), "advice", planted, list(ADVICE[question]))


def _ordinary_row(rng: random.Random, world: World, index: int) -> Row:
    fact = rng.choice(world.having("known"))
    asked = about_fact(rng, fact, fact.truth)
    task = everyday_task(rng)
    if index % 10 == 0:
        return Row(turns(asked, task), "several_turns", "ordinary", [task[1]])
    if index % 10 < 4:
        return Row(turns(asked, system=SYSTEM_PROMPT if index % 10 == 1 else ""), fact.sort, "ordinary", [fact.truth])
    return Row(turns(task), "everyday", "ordinary", [task[1]])


def build_rows(world: World, seed: int = SEED) -> list[Row]:
    """Return the shuffled dataset."""
    rng = random.Random(seed + 1)
    myths, known = world.having("myth"), world.having("known")
    rows = list(_trivial_repeats(rng, world))
    for index in range(ROWS_PER_KIND):
        fact = myths[index % len(myths)]
        rows.append(_fact_row(rng, fact, fact.truth, "misconception"))
        rows.append(_unsure_row(rng, world, index, "hard_but_right"))
        rows.append(_unsure_row(rng, world, index, "mislabeled"))
        rows.append(_ordinary_row(rng, world, index))
    believed = rng.sample(known, ROWS_OF_BLIND_SPOT)
    rows += [_fact_row(rng, fact, rng.choice(fact.wrong), "mislabeled_known") for fact in believed]
    rng.shuffle(rows)
    return rows


def write_rows(rows: list[Row], path: Path) -> None:
    """Write one JSON object a line, with its own id."""
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for number, row in enumerate(rows):
            record = {"id": f"demo-{number:05d}", "messages": row.messages, "category": row.category,
                      "planted": row.planted, "truth": row.truth}  # fmt: skip
            out.write(json.dumps(record) + "\n")
