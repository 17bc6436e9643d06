"""server/jobs/ids.py: identifiers in the order of their making."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from qtune_service.server.jobs.ids import is_id, new_id


def test_ids_sort_by_their_making() -> None:
    """Thousands within a millisecond too."""
    made = [new_id() for _ in range(5_000)]
    assert made == sorted(made)
    assert len(set(made)) == 5_000
    assert all(is_id(one) for one in made)


def test_threads_get_different_ones() -> None:
    """At once."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_id(), range(2_000)))
    assert len(set(made)) == 2_000


def test_other_texts_are_none() -> None:
    """By length and letters."""
    assert not any(is_id(text) for text in ("", "abc", "U" * 26, "u" * 26, "0" * 27))
