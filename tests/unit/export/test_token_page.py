"""token_pruning_visualization.html: the colours of the right tokens, real text, and nothing that runs or calls home."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qtune_service.export import analysis
from qtune_service.export.run import export
from qtune_service.export.writers import Options
from qtune_service.output.reader import FinishedOutput, read_samples
from tests.finished_outputs import finished_output
from tests.jobs import rows

NASTY = (
    '<script>alert("x")</script>', "</div><img src=x onerror=alert(1)>", "naïve 你好 🙂", "مرحبا بالعالم",
    "tab\there\nand\n\n there", "&lt;b&gt; &amp;", "{{ 7 * 7 }} {% raw %}", "'\"><svg/onload=alert(1)>",
    "\u202eevil\u2066",
)  # fmt: skip


@dataclass(slots=True)
class Page(HTMLParser):
    """Tags with their attributes, and the text of each article's tokens by class."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    articles: list[list[tuple[str, str, str]]] = field(default_factory=list)
    """(class, title, text) of each span of tokens."""
    _in_token: bool = False

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "article":
            self.articles.append([])
        if tag == "span" and "class" in found and self.articles:
            self.articles[-1].append((found["class"] or "", found.get("title") or "", ""))
            self._in_token = True

    def handle_endtag(self, tag: str) -> None:
        """Note the end of a token."""
        self._in_token = self._in_token and tag != "span"

    def handle_data(self, data: str) -> None:
        """Add to a token's text."""
        if self._in_token:
            css, title, text = self.articles[-1][-1]
            self.articles[-1][-1] = (css, title, text + data)


def read(path: Path) -> Page:
    """Parse a page."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    """Return an output whose texts look like markup or are hard to show. All samples are kept."""
    folder = tmp_path_factory.mktemp("nasty")
    records = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text} {NASTY[i % 9]} ok"}]}
        for i in range(4)
        for text in NASTY
    ]
    return finished_output(folder, records, prune_by={"sample_keep_ratio": 1.0, "token_keep_ratio": 0.5})


def test_tokens_of_q2_are_green_or_red_with_their_perplexity(finished: FinishedOutput, tmp_path: Path) -> None:
    """Each shown sample's tokens have the class of their fate, and their PPL in the title that hovering shows."""
    export(finished.root, "analysis", str(tmp_path), Options())
    page = read(tmp_path / "token_pruning_visualization.html")
    q2 = [row for row in rows(Path(finished.root) / "pruned") if row["qtune"]["quadrant"] == "Q2"]
    assert len(page.articles) == min(len(q2), 50)
    assert f"<b>{q2[0]['id']}</b>" in (tmp_path / "token_pruning_visualization.html").read_text(), "its own id"
    for article, row in zip(page.articles, q2, strict=False):
        colours = [css.removesuffix(" c") for css, _, _ in article if css[0] in "kr"]
        kept = colours.count("k")
        assert (kept, len(colours) - kept) == (row["qtune"]["tokens_kept"], row["qtune"]["tokens_removed"])
        assert all(re.search(r"PPL [\d.,]+", title) for css, title, _ in article if css[0] in "kr")
    assert any(css == "r" for article in page.articles for css, _, _ in article)


def test_no_more_than_fifty_samples_are_shown(weighed: FinishedOutput, tmp_path: Path) -> None:
    """The first of those that stage 2 pruned; under another strategy than Q-Tuning, of all kept ones."""
    export(weighed.root, "analysis", str(tmp_path), Options())
    assert weighed.manifest["counts"]["kept"] > 50
    page = read(tmp_path / "token_pruning_visualization.html")
    assert len(page.articles) == 50
    assert {css[0] for article in page.articles for css, _, _ in article} == {"p", "k", "r"}, "none of them is dropped"


def test_text_in_the_data_stays_text(nasty: FinishedOutput, tmp_path: Path) -> None:
    """Markup is shown, not obeyed; every sample reads as the tokenizer decodes it."""
    export(nasty.root, "analysis", str(tmp_path), Options())
    page = read(tmp_path / "token_pruning_visualization.html")
    allowed = {"html", "head", "meta", "link", "title", "style", "body", "main"}
    allowed |= {"h1", "h2", "p", "b", "span", "article", "div", "i"}
    assert {tag for tag, _ in page.tags} == allowed
    assert not [attrs for _, attrs in page.tags for name in attrs if name.startswith("on") or name == "src"]
    decode = nasty.decoder()
    samples = [sample for shard, number in nasty.shards.items() for sample in read_samples(nasty, shard, range(number))]
    texts = [decode(sample.tokens.input_ids.tolist()) for sample in samples if sample.quadrant == "Q2"]
    shown = ["".join(text for _, _, text in article) for article in page.articles]
    plain = [text.replace("\u202e", "⟨U+202E⟩").replace("\u2066", "⟨U+2066⟩") for text in texts]
    assert shown == plain


def test_the_page_needs_and_allows_nothing_from_outside(finished: FinishedOutput, tmp_path: Path) -> None:
    """No script, no address, and a policy that allows neither."""
    export(finished.root, "analysis", str(tmp_path), Options())
    text = (tmp_path / "token_pruning_visualization.html").read_text()
    page = read(tmp_path / "token_pruning_visualization.html")
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert not re.search(r"<script|https?://|//[a-z]|url\(|@import", text)


def test_long_samples_are_cut_and_say_so(
    finished: FinishedOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page has bounds whatever the data hold."""
    monkeypatch.setattr(analysis, "MAX_TOKENS", 10)
    export(finished.root, "analysis", str(tmp_path), Options())
    page = read(tmp_path / "token_pruning_visualization.html")
    assert max(sum(css[0] in "kr" for css, _, _ in article) for article in page.articles) == 10
    assert any("more tokens are not shown" in text for article in page.articles for _, _, text in article)


def test_a_page_without_samples_says_so(finished: FinishedOutput) -> None:
    """Where Q2 is empty there is still a page."""
    assert "There are no samples to show" in analysis.render_page([], finished)
