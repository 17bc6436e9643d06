"""Measure the language of docstrings and docs, and fail where a figure is over its limit.

Text that is measured:
- docs: every Markdown file in the root, docs/, examples/ and benchmarks/. CHANGELOG.md and files that `make docs`
  writes are left out. Code blocks, inline code, link targets, HTML comments and table rules are removed first.
- docstrings: those of modules, classes, functions and fields in qtune_service. Inline code is removed.

Figures:
- imperative: share of function and method docstrings, properties included, whose first word is a verb in the
  imperative. A word counts that is in VERBS, that has a verb's ending (tokenise, normalize, verify), or that is a
  prefix and such a word (rewrite, deserialise). A word that is also a noun counts as a noun before "of", "per", "in",
  "by", "that" and the end of a sentence ("Count of rows").
- fragments: share of the docstrings of modules, classes and functions that begin with a free relative ("What
  follows", "Whether"), with a preposition or conjunction and no clause in the imperative after it ("Of both.", "Where
  it is."), with a pronoun that continues the identifier ("They are here.", "The same, in files."), or that are one
  word and no verb.
- what-who: what, who and whose per 1,000 words of docs and docstrings.
- dialect: tell, tells, told, lie, lies, stand, stands, word, words, anew, beside and "at once" per 1,000 words of
  docs and docstrings.
- semicolons: semicolons per 1,000 words of docs and docstrings.
- long-lines: lines of docs with more than 160 characters, outside code blocks and tables.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "qtune_service"
LONGEST_LINE = 160
NOT_DOCS = {"CHANGELOG.md"}
DOC_FOLDERS = ("docs", "examples", "benchmarks")
GENERATED = "Written by `make docs`"


def words_of(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


# Verbs that are no common nouns in these texts, and those that are both. Verbs by ending or prefix need no entry.
VERBS = words_of("""
abort accept acknowledge acquire add adjust adopt advance allow append apply approve ask assemble assert assign attach
authorise avoid await become begin bind block bring broadcast build bump calculate cancel carry cast choose claim
clean clear close collapse collect combine compare compile complete compress compute concatenate configure confirm
connect construct consume continue convert copy create cut deal decide declare decode decompress decorate decrease
deduplicate defer define delete deliver deny deploy derive describe deserialise destroy detach detect determine
disable discard discover dispatch distribute divide do download drain draw drop embed empty enable encode enforce
enqueue ensure enter escape establish evaluate evict examine exclude execute exit expand expect expire explain expose
extend extract fail fall fetch fill find finish flatten flush fold follow forbid forget free gather generate get give
go grant handle have identify ignore import include increase infer inform inherit insert inspect install instantiate
intercept interpolate interrupt invoke judge keep kill know launch leave let listen load locate loop lower make modify
multiply narrow negotiate observe obtain offer omit open pad parse partition pause permit pick poll pop post prefer
prepare prepend preserve prevent print probe produce prohibit protect prove provide prune publish pull push put raise
reach read receive recognise redirect redraw refer refresh refuse register reject release reload remember remove
rename render renew repeat replace require reserve reset resolve respond restart restore restrict resume retain
retrieve retry return revoke satisfy save say schedule scrape see seek select send separate serve shorten show shrink
shuffle shut skip sleep smooth solve spread strip submit subtract supply suppress suspend take tell terminate throw
tidy tie toggle translate traverse trim truncate try turn unblock understand update upload use vote wait wake walk
warn weigh write yield zip
""")
NOUNS_TOO = words_of("""
answer back batch bound cache call cause change charge check clip cluster command count crop default display dump end
estimate export filter fit fix fork format group guess hash hold index join label limit link list lock log look map
mark mask match measure merge move name number order pack page part pass patch place plan plot point pool present
process prompt query queue range rank rate record reduce repair report request round run sample scale scan score
search set shape shard share sign sort split stage start state step stop store stream sum swap switch test time title
trace track transfer watch wrap
""")
NOT_VERBS = words_of("""
otherwise precise size likewise noise prize promise exercise enterprise appropriate approximate associate candidate
certificate climate coordinate date duplicate fate immediate intermediate late private rate state template ultimate
alternate accurate adequate plate delegate gate crate
""")
VERB_ENDING = re.compile(r".{3,}(?:i[sz]e|ify|[^aeiou]ate)$")
PREFIXES = ("re-", "re", "un", "de", "pre", "over", "dis")
NOUN_FOLLOWS = {"of", "per", "in", "by", "that", "which", "is", "are", "within", ""}

FREE_RELATIVES = words_of("what whatever who whoever whose whom whether how why which")
PREPOSITIONS = words_of("""
where wherever when whenever of by as from for at in on to with without within under above below after before between
among beside beyond through across per like unless until than against over into onto out off because since while if
although
""")
PRONOUNS = words_of("it they those these this that he she we both none")

WORD = re.compile(r"[A-Za-z][A-Za-z'\N{RIGHT SINGLE QUOTATION MARK}-]*")
INLINE_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK_TARGET = re.compile(r"\]\([^)]*\)")
HTML = re.compile(r"<[^>\n]+>|&[a-z]+;|&#\d+;")
TABLE_RULE = re.compile(r"\|?[\s:|-]+\|?$")
PER_WORDS = {
    "what-who": re.compile(r"\b(?:what|who|whose)\b", re.IGNORECASE),
    "dialect": re.compile(r"\b(?:told|tells?|lies?|stands?|words?|anew|beside|at\s+once)\b", re.IGNORECASE),
    "semicolons": re.compile(";"),
}


@dataclass(frozen=True)
class Limit:
    """How a figure is shown, and the value that it may not pass."""

    title: str
    unit: str
    limit: float
    at_least: bool = False

    def passes(self, value: float) -> bool:
        """Return whether a value keeps the limit."""
        return value >= self.limit if self.at_least else value <= self.limit


FIGURES = {
    "imperative": Limit("function docstrings that begin with a verb", "%", 60, at_least=True),
    "fragments": Limit("docstrings that are fragments or free relatives", "%", 3),
    "what-who": Limit("what, who, whose", "per 1,000 words", 3),
    "dialect": Limit("tell, lie, stand, word, anew, beside, at once", "per 1,000 words", 1),
    "semicolons": Limit("semicolons", "per 1,000 words", 5),
    "long-lines": Limit(f"lines of docs over {LONGEST_LINE} characters", "lines", 5),
}


@dataclass(frozen=True)
class Text:
    """A stretch of prose: a docstring, or a line of a document."""

    path: Path
    line: int
    kind: str  # "doc", "function", "docstring" (of a module or class) or "field"
    raw: str

    @property
    def prose(self) -> str:
        """Return the text without code, link targets and HTML."""
        text = INLINE_CODE.sub(" code ", self.raw)
        return HTML.sub(" ", LINK_TARGET.sub("]", text)) if self.kind == "doc" else text


@dataclass
class Tally:
    """Counts of one folder, or of all."""

    words: int = 0
    functions: int = 0
    docstrings: int = 0
    found: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, text: Text, offences: list[str]) -> None:
        """Count a text and its offences."""
        self.words += len(WORD.findall(text.prose))
        self.functions += text.kind == "function"
        self.docstrings += text.kind in {"function", "docstring"}
        for figure in offences:
            self.found[figure] += 1

    def value(self, figure: str) -> float | None:
        """Return a figure in its unit, or None where there is nothing to measure."""
        of = {"imperative": self.functions, "fragments": self.docstrings, "long-lines": 1}.get(figure, self.words)
        if not of:
            return None
        count = self.functions - self.found[figure] if figure == "imperative" else self.found[figure]
        return count * {"%": 100, "per 1,000 words": 1000, "lines": 1}[FIGURES[figure].unit] / of


def is_verb(word: str, next_word: str) -> bool:
    """Return whether a first word is a verb in the imperative."""
    word = word.lower()
    if word in NOUNS_TOO:
        return next_word not in NOUN_FOLLOWS
    if word in VERBS:
        return True
    if word in NOT_VERBS:
        return False
    if VERB_ENDING.match(word):
        return True
    known = VERBS | NOUNS_TOO
    return any(word.startswith(prefix) and word.removeprefix(prefix) in known for prefix in PREFIXES)


def first_words(sentence: str) -> tuple[str, str]:
    """Return the first word, and the next one where no full stop is between them, in lower case."""
    match = re.match(r"\W*([\w'-]+)([.:]?)\s*([\w'-]*)", sentence)
    if match is None:
        return "", ""
    first, stop, second = match.groups()
    return first, "" if stop else second.lower()


def begins_with_verb(docstring: str) -> bool:
    """Return whether a docstring is an imperative sentence, by its first word. A code span is no verb."""
    return not docstring.lstrip().startswith(("`", "(")) and is_verb(*first_words(docstring))


def is_fragment(docstring: str) -> bool:
    """Return whether a docstring is a fragment or a free relative, by how it begins."""
    first, second = first_words(docstring)
    if first.lower() in FREE_RELATIVES | PRONOUNS or (first, second) == ("The", "same"):
        return True
    sentence = re.split(r"[.:](?:\s|$)", docstring.strip(), maxsplit=1)[0]
    if first.lower() in PREPOSITIONS:
        clauses = sentence.split(", ")[1:]
        return not any(is_verb(*first_words(clause)) for clause in clauses)
    words = docstring.split()
    return len(words) == 1 and WORD.fullmatch(words[0].rstrip(".")) is not None and not is_verb(first, "it")


def docstrings(path: Path) -> Iterator[Text]:
    """Yield the docstrings of a module, its classes, functions and fields."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for before, statement in zip([None, *body], body, strict=False):
            value = statement.value if isinstance(statement, ast.Expr) else None
            if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
                continue
            if before is None:
                yield Text(path, value.lineno, "function" if is_function else "docstring", value.value)
            elif isinstance(before, ast.AnnAssign | ast.Assign):
                yield Text(path, value.lineno, "field", value.value)


def doc_lines(path: Path) -> Iterator[Text]:
    """Yield the lines of a Markdown file that are prose: no code blocks, no comments, no table rules."""
    text = path.read_text(encoding="utf-8")
    if GENERATED in text[:400]:
        return
    text = re.sub(r"<!--.*?-->", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence and line.strip() and not TABLE_RULE.match(line.strip()):
            yield Text(path, number, "doc", line)


def texts(root: Path) -> Iterator[Text]:
    """Yield all texts of a checkout."""
    for path in sorted((root / PACKAGE).rglob("*.py")):
        yield from docstrings(path)
    paths = set(root.glob("*.md"))
    for folder in DOC_FOLDERS:
        paths.update((root / folder).rglob("*.md"))
    for path in sorted(paths):
        if path.name not in NOT_DOCS and "results" not in path.relative_to(root).parts:
            yield from doc_lines(path)


def offences(text: Text) -> list[str]:
    """Return the figures that a text counts in, one entry for each time."""
    prose = text.prose
    found = [figure for figure, pattern in PER_WORDS.items() for _ in pattern.findall(prose)]
    if text.kind == "function" and not begins_with_verb(text.raw):
        found.append("imperative")
    if text.kind in {"function", "docstring"} and is_fragment(text.raw):
        found.append("fragments")
    if text.kind == "doc" and len(text.raw) > LONGEST_LINE and not text.raw.lstrip().startswith("|"):
        found.append("long-lines")
    return found


def folder_of(path: Path) -> str:
    """Return the folder that a path is counted in: two levels of the package, one of the rest."""
    parts = path.parts
    if len(parts) == 1:
        return parts[0]
    return "/".join(parts[:2]) if parts[0] == PACKAGE else parts[0]


def print_list(root: Path, figure: str) -> None:
    """Print each offence of a figure as file:line and its text."""
    for text in texts(root):
        if figure in offences(text):
            print(f"{text.path.relative_to(root)}:{text.line}: {' '.join(text.raw.split())[:110]}")


def print_folders(tallies: dict[str, Tally]) -> None:
    """Print a row of figures for each folder."""
    print(f"{'folder':<32}" + "".join(f"{figure:>12}" for figure in FIGURES))
    for folder, tally in sorted(tallies.items()):
        values = [tally.value(figure) for figure in FIGURES]
        print(f"{folder:<32}" + "".join(f"{'-' if value is None else f'{value:.1f}':>12}" for value in values))
    print()


def print_figures(total: Tally) -> bool:
    """Print each figure, its value and its limit, and return whether all limits are kept."""
    print(f"{'figure':<12}{'':<50}{'now':>8}{'limit':>10}  unit")
    is_good = True
    for figure, limit in FIGURES.items():
        value = total.value(figure) or 0.0
        passes = limit.passes(value)
        is_good &= passes
        bound = f"{'>=' if limit.at_least else '<='} {limit.limit:g}"
        print(
            f"{figure:<12}{limit.title:<50}{value:>8.1f}{bound:>10}  {limit.unit}{'' if passes else '  OVER THE LIMIT'}"
        )
    print(f"\n{total.words:,} words, {total.docstrings:,} docstrings, {total.functions:,} of them of functions")
    return is_good


def main() -> int:
    """Measure a checkout and return the exit code: 1 where a figure is over its limit."""
    parser = argparse.ArgumentParser(description="Measure the language of docstrings and docs.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="checkout to measure")
    parser.add_argument("--by-folder", action="store_true", help="print the figures of each folder too")
    parser.add_argument(
        "--list", choices=FIGURES, metavar="FIGURE", help=f"print each offence as file:line: {', '.join(FIGURES)}"
    )
    parser.add_argument("--no-check", action="store_true", help="print only, with exit code 0")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    if arguments.list:
        print_list(root, arguments.list)
        return 0
    total = Tally()
    folders: dict[str, Tally] = defaultdict(Tally)
    for text in texts(root):
        found = offences(text)
        total.add(text, found)
        folders[folder_of(text.path.relative_to(root))].add(text, found)
    if arguments.by_folder:
        print_folders(folders)
    return 0 if print_figures(total) or arguments.no_check else 1


if __name__ == "__main__":
    sys.exit(main())
