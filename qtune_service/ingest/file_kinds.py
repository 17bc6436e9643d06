"""Identify the kind of a file by its first bytes, and then by its name.

Content takes precedence over the name: a `.json` file of JSON lines is read as such, and a file with an unknown suffix
is accepted if its content is recognized. CSV has no mark of its own, so it needs its suffix. Content that is no data
set, such as a Git LFS pointer or a zip archive, is an error that says what it is and what to do.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Literal, cast

import orjson

from qtune_service.errors import DataError
from qtune_service.ingest.compression import NAMES, SUFFIXES, Compression, compression_of, inflate_head
from qtune_service.ingest.jsonl import BOM

Kind = Literal["jsonl", "json", "csv", "parquet", "arrow"]
SUPPORTED = (
    "Supported: .jsonl, .ndjson, .json, .csv and .tsv, each also .gz, .zst, .bz2 or .xz, and .parquet and .arrow, "
    "also in folders of save_to_disk."
)
ENDING = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|parquet|pq|arrow|feather)(?:\.(gz|gzip|zst|zstd|bz2|xz))?$", re.IGNORECASE
)
IN_ROWS: frozenset[Kind] = frozenset(("parquet", "arrow"))
"""Kinds whose rows are Arrow's and are read by row numbers."""
_UNPACK = "Unpack it first."
_UTF16 = "Save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8."
_CONVERT = "Convert it, for example with pandas: "
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", f"{_CONVERT}read_hdf(...).to_parquet(...)."),
    (b"SQLite format 3\0", "an SQLite database", f"{_CONVERT}read_sql(...).to_parquet(...)."),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook (.xls)", "Save the sheet as CSV."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "an lz4 stream", "Unpack it with lz4 -d, or compress it with zstd."),
    (b"\xff\x06\0\0sNaPpY", "a snappy stream", _UNPACK),
    (b"\x93NUMPY", "a NumPy array (.npy)", "Write the records that it belongs to as JSON lines or Parquet."),
    (b"FEA1", "a Feather file of version 1", "Write it again with version 2, pyarrow.feather.write_feather."),
    (b"ORC", "an ORC file", f"{_CONVERT}read_orc(...).to_parquet(...)."),
    (b"Obj\x01", "an Avro file", "Convert it to Parquet or JSON lines."),
    (b"GGUF", "the weights of a model (GGUF)", "Give the files of the data."),
    (b"%PDF", "a PDF document", "Give records with prompts and answers."),
    (b"\x89PNG", "an image", "Only text can be scored."),
    (b"\xff\xd8\xff", "an image", "Only text can be scored."),
    (b"\xff\xfe\0\0", "UTF-32 text", "Save it as UTF-8, for example with iconv -f UTF-32 -t UTF-8."),
    (b"\xff\xfe", "UTF-16 text", _UTF16),
    (b"\xfe\xff", "UTF-16 text", _UTF16),
)
_PATTERNS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (
        re.compile(rb"version https?://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/"),
        "a Git LFS pointer, not the data",
        "Fetch the data with git lfs pull.",
    ),
    (
        re.compile(rb"\x80[\x02-\x05][\x95\x8c}\]c(X]"),
        "a Python pickle",
        f"{_CONVERT}read_pickle(...).to_parquet(...).",
    ),
    (
        re.compile(rb".{5}\0\0\0\{\"", re.DOTALL),
        "the weights of a model (safetensors)",
        "Give the files of the data.",
    ),
    (
        re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|\?xml)", re.IGNORECASE),
        "an HTML page, not JSON or CSV",
        "Perhaps a login page was saved instead of the data: download it again.",
    ),
    (re.compile(rb"(?:[\t\r\n {\[\"]\0){2}|(?:\0[\t\r\n {\[\"]){2}"), "UTF-16 text", _UTF16),
)
_STREAM = b"\xff\xff\xff\xff"
"""First bytes of a message of an Arrow stream, before the length of its metadata."""


_NAMED: dict[str, Kind] = {"ndjson": "jsonl", "tsv": "csv", "pq": "parquet", "feather": "arrow"}
"""Suffixes that are not the name of their kind."""


def named_kind(name: str) -> tuple[Kind | None, Compression | None]:
    """Return kind and compression that the suffix of a file stands for; None for a suffix that says too little."""
    ending = ENDING.search(name.partition("?")[0] if "://" in name else name)
    if ending is None:
        return None, None
    kind = _NAMED.get(ending.group(1).lower(), cast("Kind", ending.group(1).lower()))
    if ending.group(2) is None:
        return kind, None
    return (None, None) if kind in IN_ROWS else (kind, SUFFIXES[ending.group(2).lower()])


def identify(name: str, head: bytes, *, is_whole: bool) -> tuple[Kind, Compression | None]:
    """Return kind and compression of a file. Raise DataError for content that cannot be read.

    head: the first `compression.head_bytes` bytes of the file. is_whole: whether these are all.
    """
    compression = compression_of(head)
    if compression is not None:
        head, is_whole = inflate_head(head, compression)
    ending = ENDING.search(name)
    named = ending.group(1).lower() if ending else ""
    in_rows = _kind_in_rows(head)
    if in_rows is not None and compression is None:
        return in_rows, None
    _refuse_foreign(name, named, head, compression)
    return _kind_of_text(name, named, head.removeprefix(BOM).lstrip(), is_whole=is_whole), compression


def _kind_in_rows(head: bytes) -> Kind | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    return "arrow" if head.startswith((b"ARROW1", _STREAM)) else None


def _refuse_foreign(name: str, named: str, head: bytes, compression: Compression | None) -> None:
    found = foreign_content(head) or _not_as_named(named)
    if compression is not None and (in_rows := _kind_in_rows(head)):
        found = f"{described(in_rows, None)} inside .{compression}", "Unpack it: it compresses by itself."
    if found is not None:
        raise DataError(f"cannot read {name}: it is {found[0]}", f"{found[1]} {SUPPORTED}".strip())


def _not_as_named(named: str) -> tuple[str, str] | None:
    if named in ("parquet", "pq"):
        return "not Parquet: its first bytes are not PAR1", ""
    if named in ("arrow", "feather"):
        return "not Arrow: its first bytes are neither those of an Arrow stream nor of a file", ""
    return None


def foreign_content(head: bytes) -> tuple[str, str] | None:
    """Return what a file is and what to do, for content that holds no records; None for other content."""
    if head.startswith(b"PK\x03\x04"):
        return _in_zip(head)
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    by_pattern = ((what, advice) for pattern, what, advice in _PATTERNS if pattern.match(head))
    by_magic = ((what, advice) for magic, what, advice in _FOREIGN if head.startswith(magic))
    return next(chain(by_pattern, by_magic), None)


def _in_zip(head: bytes) -> tuple[str, str]:
    """Return what a zip archive holds, by the name of its first file."""
    first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if first in (b"[Content_Types].xml", b"_rels/.rels") or first.startswith((b"xl/", b"docProps/")):
        return "an Excel workbook (.xlsx) or another Office document", "Save the sheet as CSV."
    if first.endswith(b".npy"):
        return "a NumPy archive (.npz)", "Write the records that it belongs to as JSON lines or Parquet."
    if first.endswith((b"/data.pkl", b"/version")):
        return "a file of torch.save", "Write its records as JSON lines or Parquet."
    return "a zip archive", _UNPACK


# --- text


def _kind_of_text(name: str, named: str, text: bytes, *, is_whole: bool) -> Kind:
    is_array, is_object = text.startswith(b"["), text.startswith(b"{")
    first, newline, rest = text.partition(b"\n")
    goes_on = bool(rest.strip()) or (bool(newline) and not is_whole)
    if (is_array or is_object) and newline and goes_on and _is_json(first):
        return "jsonl"
    if named in ("csv", "tsv") and not ((is_array or is_object) and _is_json(first)):
        return "csv"
    if is_object and _is_pretty(text, first, is_whole=is_whole):
        return "json"
    if named in ("jsonl", "ndjson") and not is_array:
        return "jsonl"
    if is_array or is_object or named == "json":
        return "json"
    raise DataError(f"cannot detect the format of {name}", SUPPORTED)


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except ValueError:
        return False
    return True


def _is_pretty(text: bytes, first: bytes, *, is_whole: bool) -> bool:
    """Return whether the text begins with an object over several lines, so that its lines are no records.

    Of an object longer than the head, only the beginning can be checked.
    """
    decoded = text.decode("utf-8", "replace")
    try:
        _, end = json.JSONDecoder().raw_decode(decoded)
    except json.JSONDecodeError as error:
        return not is_whole and len(first) < len(text) and _is_cut(error, len(decoded))
    except (ValueError, RecursionError):
        return False
    return end > len(first.decode("utf-8", "replace").rstrip())


def _is_cut(error: json.JSONDecodeError, length: int) -> bool:
    return error.pos >= length - 16 or error.msg.startswith("Unterminated string")


def described(kind: Kind, compression: Compression | None) -> str:
    """Return the name of a kind for messages, such as `JSON lines in gzip`."""
    what = {"jsonl": "JSON lines", "json": "JSON", "csv": "CSV", "parquet": "Parquet", "arrow": "Arrow"}[kind]
    return what if compression is None else f"{what} in {NAMES[compression]}"
