"""Made-up conditions against a real child: each is answered, or refused with an error for its writer.

The child may die of one; then that is the answer, and the next condition has another child.
"""

from __future__ import annotations

import itertools
import string
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from qtune_service.errors import QueryError
from qtune_service.output.query import Selection
from qtune_service.output.query.conditions import FUNCTIONS, TYPES
from qtune_service.server.questions.client import Questions
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs

SLOW_S = 90
COLUMNS = ("line", "source", "perplexity", "kept", "truth", "messages", "meta", "category", "typical", "id")
LONG = ("[" * 900, '{"a":' * 200, "a" * 1000, "(" * 200, "%_" * 300, "$" + "[0]" * 100, "9" * 400, "\u0130" * 500)
CONSTANTS = ("0", "1", "-1", "1e308", "NULL", "''", "'a'", "'$.a'", "'$..*'", "DATE '2024-01-01'", "[]")
REFUSED = ("list_aggr", "json_contains", "repeat", "range")
CALLED = (*sorted(name for name in FUNCTIONS if name.isidentifier()), *REFUSED)
OPERATORS = (*sorted(name for name in FUNCTIONS if not name.isidentifier()), "=", "<", "AND", "OR", "LIKE", "IN", "||")

leaves = st.one_of(
    st.sampled_from(COLUMNS),
    st.sampled_from(CONSTANTS),
    st.sampled_from(LONG).map(lambda text: f"'{text}'"),
    st.integers(-(2**70), 2**70).map(str),
    st.text(string.printable, max_size=20).map(lambda text: "'" + text.replace("'", "''") + "'"),
)


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions of expressions."""
    several = st.lists(inner, min_size=1, max_size=4).map(", ".join)
    return st.one_of(
        st.tuples(st.sampled_from(CALLED), several).map(lambda pair: f"{pair[0]}({pair[1]})"),
        st.tuples(inner, st.sampled_from(OPERATORS), inner).map(lambda parts: "({} {} {})".format(*parts)),
        st.tuples(inner, st.sampled_from(sorted(TYPES))).map(lambda pair: f"CAST({pair[0]} AS {pair[1]})"),
        several.map(lambda items: f"[{items}]"),
        st.tuples(inner, inner).map(lambda pair: f"{{'a': {pair[0]}, 'b': {pair[1]}}}"),
        st.tuples(inner, inner).map(lambda pair: f"CASE WHEN {pair[0]} THEN {pair[1]} END"),
        st.tuples(inner, st.integers(1, 300)).map(lambda pair: "NOT " * pair[1] + pair[0]),
        st.tuples(inner, st.integers(1, 40)).map(lambda pair: "[" * pair[1] + pair[0] + "]" * pair[1]),
        st.tuples(inner, st.integers(1, 100)).map(lambda pair: "[" + ", ".join([pair[0]] * pair[1]) + "]"),
    )


expressions = st.recursive(leaves, larger, max_leaves=12)
conditions = st.one_of(
    expressions.map(lambda text: f"({text}) IS NOT NULL"),
    st.tuples(expressions, expressions).map(lambda pair: f"{pair[0]} = {pair[1]}"),
    expressions,
    st.text(string.printable, max_size=60),
    st.text(max_size=40),
)


@pytest.fixture(scope="module")
def questions() -> Iterator[Questions]:
    """Children with little memory, so that one that takes much is found out."""
    made = Questions(1 << 30)
    yield made
    made.close()


def try_one(questions: Questions, root: str, where: str) -> None:
    """Ask, and check that there is an answer."""
    try:
        found = questions.samples(root, "1", Selection(where=where, limit=1))
    except QueryError as error:
        message = str(error)
    else:
        message, total = "found", found["total"]
        assert 0 <= total <= NUM_SAMPLES
    assert 0 < len(message) < 3000


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(where=conditions)
def test_conditions_are_answered(questions: Questions, outputs: FinishedOutputs, where: str) -> None:
    """A few, always the same."""
    try_one(questions, outputs.pruned.root, where)


@pytest.mark.slow
def test_many_conditions_are_answered(questions: Questions, outputs: FinishedOutputs) -> None:
    """As many as there is time for, and others each time."""
    ends_s, first = time.monotonic() + SLOW_S, time.time_ns()
    for number in itertools.count():
        if time.monotonic() > ends_s:
            break

        @seed(first + number)
        @settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(where=conditions)
        def ask(where: str) -> None:
            try_one(questions, outputs.pruned.root, where)

        ask()
    assert number > 3
