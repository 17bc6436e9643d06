"""The error-uncertainty plane in characters, with one sample on it. Axes are ranks, so the kept corners are squares."""

from __future__ import annotations

from rich.text import Text

WIDTH, HEIGHT = 40, 12
"""Characters; one is about twice as high as wide, so the plane comes out wider than high."""
KEPT, SAMPLE = "░", "●"
NAMES = {(0, 1): "Q4", (0, WIDTH - 3): "Q1", (HEIGHT - 1, 1): "Q3", (HEIGHT - 1, WIDTH - 3): "Q2"}


def draw_plane(error_rank: float, entropy_rank: float, alpha: float) -> Text:
    """The plane: corners that are kept are grey, the sample is a dot."""
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
