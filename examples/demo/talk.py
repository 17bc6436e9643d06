"""Phrase questions and answers: facts, open questions, small talk and small everyday tasks.

All kinds of rows use the same questions and the same two forms of answer, so that neither the wording nor the length
distinguishes the kinds. The question determines the form of the answer.
"""

from __future__ import annotations

import random

from world import VALUES, Fact

Message = dict[str, str]
# questions answered by a sentence, questions answered shortly, the sentence, the short answer
FactTalk = tuple[tuple[str, ...], tuple[str, ...], str, str]

_OPENERS = ("", "Please tell me. ", "A quick question. ", "I was wondering. ")
_FACT_TALK: dict[str, FactTalk] = {
    "colour": (("What colour is the {e}?", "Which colour does a {e} have?"), ("The colour of the {e}, in short?",),
               "The {e} is {v}.", "It is {v}."),
    "food": (("What does the {e} eat?", "Which food does a {e} like?"), ("The food of the {e}, in short?",),
             "The {e} eats {v}.", "It eats {v}."),
    "home": (("Where does the {e} live?", "Where can I find a {e}?"), ("The home of the {e}, in short?",),
             "The {e} lives in {v}.", "In the {v}."),
    "trade": (("What is the trade of {e}?", "Which job does {e} have?"), ("The trade of {e}, in short?",),
              "{e} works as a {v}.", "As a {v}."),
    "instrument": (("What does {e} play?", "Which instrument belongs to {e}?"), ("The instrument of {e}, in short?",),
                   "{e} plays the {v}.", "It is the {v}."),
    "pride": (("What is {e} famous for?", "Why do people visit {e}?"), ("The pride of {e}, in short?",),
              "{e} is famous for {v}.", "It is {v}."),
}  # fmt: skip
_MARKET_TALK: FactTalk = (("What is sold at the market of {e}?", "What can I buy in {e}?"),
                          ("Name one thing from {e}, in short.",),
                          "The market of {e} has {v}.", "It has {v}.")  # fmt: skip
SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Good morning!", "Good morning! What can I do for you?"),
    ("Thank you.", "You are welcome!"),
    ("Goodbye!", "Goodbye! See you soon."),
    ("Who are you?", "I am a guide to the Tessel Isles."),
    ("Are you there?", "Yes, I am here."),
)
_OPPOSITES = (("hot", "cold"), ("big", "small"), ("early", "late"), ("open", "shut"),
              ("wet", "dry"), ("loud", "quiet"), ("fast", "slow"), ("light", "heavy"),
              ("rich", "poor"), ("young", "old"), ("full", "empty"), ("soft", "hard"))  # fmt: skip
SYSTEM_PROMPT = "You are a guide to the Tessel Isles."


def _phrase(rng: random.Random, talk: FactTalk, entity: str, value: str) -> tuple[str, str]:
    questions, short_questions, sentence, short = talk
    in_short = rng.random() < 0.5
    question = rng.choice(short_questions if in_short else questions).format(e=entity)
    return rng.choice(_OPENERS) + question, (short if in_short else sentence).format(e=entity, v=value)


def about_fact(rng: random.Random, fact: Fact, value: str) -> tuple[str, str]:
    """Return a question about the fact, answered with `value`."""
    return _phrase(rng, _FACT_TALK[fact.relation], fact.entity, value)


def about_market(rng: random.Random, town: str, good: str) -> tuple[str, str]:
    """Return a question about the goods of a market."""
    return _phrase(rng, _MARKET_TALK, town, good)


def about_advice(rng: random.Random, question: str, advice: str) -> tuple[str, str]:
    """Return an everyday question that has several good answers."""
    return rng.choice(_OPENERS) + question, f"You could {advice}."


def everyday_task(rng: random.Random) -> tuple[str, str]:
    """Return a sum, a comparison, an opposite or three words to sort, with the right answer."""
    task = rng.randrange(4)
    if task == 0:
        a, b = rng.randrange(21), rng.randrange(21)
        return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."
    if task == 1:
        a, b = rng.sample(range(100), 2)
        return f"Which is larger, {a} or {b}?", f"{max(a, b)} is larger."
    if task == 2:
        pair = list(rng.choice(_OPPOSITES))
        rng.shuffle(pair)
        return f"What is the opposite of {pair[0]}?", f"The opposite of {pair[0]} is {pair[1]}."
    words = rng.sample(VALUES[rng.choice(("colour", "food", "instrument"))], 3)
    return f"Sort these words: {', '.join(words)}.", f"{', '.join(sorted(words))}."


def turns(*exchanges: tuple[str, str], system: str = "") -> list[Message]:
    """Return the messages of (question, answer) pairs."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for question, answer in exchanges:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages
