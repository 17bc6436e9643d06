"""Terminal views of a finished job: quadrants, thresholds, tokens, rejected records and time, from its manifest.

Bars have a resolution of an eighth of a character. The error-uncertainty plane of one sample is drawn in characters.
Its axes are ranks, so the kept corners are squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qtune_service.job_fields import in_terminal

EIGHTHS = " ▏▎▍▌▋▊▉"
BAR_WIDTH = 10
QUADRANTS = {
    "Q1": ("harmful noise", "dropped"),
    "Q2": ("valuable misconception", "kept, worst tokens masked"),
    "Q3": ("redundant knowledge", "dropped"),
    "Q4": ("calibration data", "kept whole"),
}
WIDTH, HEIGHT = 40, 12
"""Characters. A character is about twice as high as wide, so the plane is wider than high."""
KEPT, SAMPLE = "░", "●"
NAMES = {(0, 1): "Q4", (0, WIDTH - 3): "Q1", (HEIGHT - 1, 1): "Q3", (HEIGHT - 1, WIDTH - 3): "Q2"}


def bar(share: float, width: int) -> str:
    """Return a bar of `share` (0 to 1) of `width` characters. A share above 0 is always visible."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    eighths = max(eighths, 1) if share > 0 else 0
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def describe_job(manifest: dict[str, Any]) -> Group:
    """Return everything that the terminal shows of a finished job."""
    return Group(*_parts(manifest))


def _parts(m: dict[str, Any]) -> Iterator[RenderableType]:
    if m.get("thresholds"):
        yield _quadrants(m["counts"], m["spec"]["prune"]["strategy"])
    yield _facts(m)
    if m["rejected_reasons"]:
        yield _rejected(m["rejected_reasons"], m["counts"]["read"])
    for warning in m.get("warnings", ()):
        yield Text(f"! {in_terminal(warning, '`{}`')}", style="yellow")


def _quadrants(counts: dict[str, int], strategy: str) -> Table:
    """Return the table of quadrants. For other strategies than the method's it shows no decisions."""
    decides = strategy == "q_tuning"
    table = Table(title="Samples by quadrant", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name, justify in (("quadrant", "left"), ("samples", "right"), ("share", "right"), ("", "left"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    most = max(*(counts[name] for name in QUADRANTS), 1)
    for name, (meaning, decision) in QUADRANTS.items():
        share = counts[name] / max(counts["scored"], 1)
        style = "" if not decides else "green" if name in ("Q2", "Q4") else "dim"
        length = bar(counts[name] / most, BAR_WIDTH)
        end = decision if decides else ""
        table.add_row(f"{name} {meaning}", f"{counts[name]:,}", f"{share:.1%}", length, end, style=style)
    return table


def _facts(m: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _rows(m):
        table.add_row(name, value)
    return table


def _rows(m: dict[str, Any]) -> Iterator[tuple[str, str]]:
    c = m["counts"]
    yield "read", f"{c['read']:,} = {c['scored']:,} scored + {c['rejected']:,} rejected"
    if m.get("thresholds"):
        t, selection = m["thresholds"], m["selection"]
        ratio = m["spec"]["prune"]["sample_keep_ratio"]
        target = f"target {selection['target']:,}, {ratio:.2%}"
        if (strategy := m["spec"]["prune"]["strategy"]) != "q_tuning":
            yield "chosen by", strategy
        yield "kept", f"{c['kept']:,} of {c['scored']:,} ({c['kept'] / c['scored']:.2%}; {target})"
        disjoint = selection["disjoint_capacity"] / c["scored"]
        yield "alpha", f"{t['alpha']:.4f} (disjoint corners hold at most {disjoint:.1%})"
        yield "perplexity", f"low {_number(t['ppl_low'])}, high {_number(t['ppl_high'])}"
        yield "entropy", f"low {_number(t['ent_low'])}, high {_number(t['ent_high'])} nats"
        before, after = m["tokens"]["before"], m["tokens"]["after"]
        removed = 1 - after / before if before else 0.0
        kept = f"kept samples {before:,} -> {after:,} ({removed:.1%} masked)"
        yield "trained tokens", f"{m['tokens']['scored']:,} scored; {kept}"
    else:
        yield "trained tokens", f"{m['tokens']['scored']:,} scored"
    e = m["engine"]
    yield "engine", f"{e['name']} {e['version']}, {e['device']}, {e['dtype']}"
    if speed := m.get("performance"):
        busy = f"engine busy {speed['engine_busy_share']:.0%}"
        yield "speed", f"{speed['tokens_per_s']:,.0f} tokens/s, {busy}, start-up {speed['startup_s']:.0f} s"
    yield "seconds", ", ".join(f"{name} {value:.1f}" for name, value in m["seconds"].items())


def _rejected(reasons: dict[str, int], read: int) -> Table:
    table = Table(title="Rejected", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("reason")
    table.add_column("records", justify="right")
    table.add_column("share of read", justify="right")
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        table.add_row(reason, f"{count:,}", f"{count / read:.2%}")
    return table


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}"


def draw_plane(error_rank: float, entropy_rank: float, alpha: float) -> Text:
    """Draw the plane. Kept corners are grey, and the sample is a dot."""
    at = (_cell(1 - entropy_rank, HEIGHT), _cell(error_rank, WIDTH))
    text = Text(f"entropy rank\n1 ┌{'─' * WIDTH}┐\n")
    for row in range(HEIGHT):
        text.append("0 │" if row == HEIGHT - 1 else "  │")
        line = "".join(_sign(row, column, alpha) for column in range(WIDTH))
        for (name_row, column), name in NAMES.items():
            if name_row == row:
                line = line[:column] + name + line[column + 2 :]
        if at[0] == row:
            text.append(line[: at[1]], "dim").append(SAMPLE, "bold").append(line[at[1] + 1 :], "dim")
        else:
            text.append(line, "dim")
        text.append("│\n")
    return text.append(f"  └{'─' * WIDTH}┘\n   0{'perplexity rank':^{WIDTH - 2}}1")


def _cell(rank: float, size: int) -> int:
    return min(int(rank * size), size - 1)


def _sign(row: int, column: int, alpha: float) -> str:
    p, e = (column + 0.5) / WIDTH, 1 - (row + 0.5) / HEIGHT
    is_kept = (p >= 1 - alpha and e <= alpha) or (p <= alpha and e >= 1 - alpha)
    return KEPT if is_kept else " "
