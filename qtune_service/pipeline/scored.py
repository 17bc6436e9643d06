"""What the scoring stage left: the sum of its shards' markers. Kept in the manifest, so that an output can be pruned again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qtune_service.errors import EngineError

Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Scored:
    """All score shards of a job."""

    shards: dict[int, int]
    """Shard index -> scored rows."""
    read: int
    rejected: int
    reasons: Counts
    rejected_by_source: Counts
    rejected_by_category: Counts
    truncated: int
    tokens: int
    """All tokens that went through the model."""
    trained_tokens: int
    engine: dict[str, Any]
    """EngineInfo of the actors; empty where nothing was scored."""
    template: str
    """How conversations were rendered."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Column in scores/ -> column in pruned/, where these differ."""
    category_column: str | None = None
    """Column of scores/ that holds the category."""
    files: tuple[dict[str, Any], ...] = ()

    @property
    def num_samples(self) -> int:
        """Scored samples."""
        return self.read - self.rejected

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest, without the files, which the manifest lists itself."""
        body = asdict(self)
        del body["files"]
        return {**body, "shards": {str(index): rows for index, rows in self.shards.items()}}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Scored:
        """Read back what `to_dict` wrote."""
        body = dict(manifest["scoring"])
        shards = {int(index): rows for index, rows in body.pop("shards").items()}
        files = tuple(f for f in manifest["files"] if f["path"].startswith(("scores/", "rejected/")))
        return cls(shards=shards, files=files, **body)


def summarise(
    markers: Mapping[int, Mapping[str, Any]], *, template: str, renamed: dict[str, str], category_column: str | None
) -> Scored:
    """Add up the markers of all shards. Raises EngineError where two engines scored one output."""
    ordered = [markers[index] for index in sorted(markers)]
    engines = {(m["engine"]["name"], m["engine"]["version"]): m["engine"] for m in ordered if m["engine"]}
    if len(engines) > 1:
        raise EngineError(
            f"the shards were scored by different engines: {', '.join(' '.join(e) for e in sorted(engines))}",
            "Choose one with --engine, and start anew with --overwrite.",
        )
    return Scored(
        shards={index: markers[index]["scored"] for index in sorted(markers)},
        read=sum(m["read"] for m in ordered),
        rejected=sum(m["rejected"] for m in ordered),
        reasons=add_counts(m["reasons"] for m in ordered),
        rejected_by_source=add_counts(m["rejected_by_source"] for m in ordered),
        rejected_by_category=add_counts(m["rejected_by_category"] for m in ordered),
        truncated=sum(m["truncated"] for m in ordered),
        tokens=sum(m["tokens"] for m in ordered),
        trained_tokens=sum(m["trained_tokens"] for m in ordered),
        engine=next(iter(engines.values()), {}),
        template=template,
        renamed=renamed,
        category_column=category_column,
        files=tuple(f for m in ordered for f in m["files"]),
    )


def add_counts(counts: Iterable[Mapping[str, int]]) -> Counts:
    """Sum counts by name."""
    total: Counter[str] = Counter()
    for c in counts:
        total.update(c)
    return dict(total)
