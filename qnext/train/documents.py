"""Text documents: readers that turn the files of the data folder into a list of plain texts.

The mixture calls `read_documents` once per part; the vocabulary trainer and story chat read stories through
it too. Invariant: files meant for evaluation are read only when the caller says `heldout`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import zstandard

HELDOUT_FILES = frozenset({"tinystories_en_a.txt.zst"})

# Text that was once decoded with the wrong code page, and typographic signs: plain ASCII instead.
_PLAIN = {"â€œ": '"', "â€": '"', "â€™": "'", "â€˜": "'", "â€“": "-", "â€”": "-", "â€¦": "...", "“": '"',
          "”": '"', "‘": "'", "’": "'", "…": "...", "\u00a0": " ", "\ufeff": "", "\u200b": ""}  # fmt: skip
_PLAIN_PATTERN = re.compile("|".join(map(re.escape, sorted(_PLAIN, key=len, reverse=True))))
_KIN = r"(?:mom|mommy|mum|mummy|mama|dad|daddy|papa|grandma|grandpa|granny|auntie)"
_OWNED_KIN = re.compile(
    rf"\b((?:a|an|the|my|your|his|her|their|our|its|and|'s|little|old|new|kind|good|nice) )({_KIN})\b", re.I
)
_SAID = r"(?:said|asked|cried|shouted|replied|called|yelled|exclaimed|whispered|laughed|answered)"
_SPEECH_GOES_ON = re.compile(rf'([!?]["\'] )(?={_SAID}\b|(?:the |her |his )?[a-z]+ {_SAID}\b)')
_PASSAGE_CHARACTERS = 1400
_LONGEST_STORY = 5000  # longer pieces are several stories that nothing parts


def plain(text: str) -> str:
    """Straight quotes, plain dashes and no invisible characters."""
    return _PLAIN_PATTERN.sub(lambda match: _PLAIN[match.group()], text)


def read_documents(kind: str, path: Path, heldout: bool = False) -> list[str]:
    """The documents of one file, in file order.

    kind: "stories" (true case), "lower_stories" (cased here by rules fitted on tinystories_en_b beside it),
    "passages" (books as JSON lines with `text` and `lang`, English only), "pairs" (tab-separated
    translations). Raises ValueError when the file is missing, or is an evaluation file and `heldout` is
    false.
    """
    if path.name in HELDOUT_FILES and not heldout:
        raise ValueError(f"{path.name} is held out for evaluation: give the part heldout = true to read it")
    if kind not in READERS:
        raise ValueError(f"no document kind {kind!r}: use one of {', '.join(READERS)}")
    documents = [plain(document).strip() for document in READERS[kind](path)]
    if not documents:
        raise ValueError(f"{path} holds no document of kind {kind!r}: check the file and the part's kind")
    return documents


def read_told_stories(folder: Path, heldout: bool = False) -> list[str]:
    """The stories for story chat: those of the folder's two training slices, or of its held-out one."""
    if heldout:
        return read_documents("stories", folder / "tinystories_en_a.txt.zst", heldout=True)
    return read_documents("stories", folder / "tinystories_en_b.txt.zst") + read_documents(
        "lower_stories", folder / "tinystories_en_lower.txt.zst"
    )


def read_text(path: Path) -> str:
    """The text of a .zst or plain UTF-8 file. Raises ValueError naming the file that is neither."""
    if not path.is_file():
        raise ValueError(f"data file {path} not found: set data.root to the folder that holds it")
    raw = path.read_bytes()
    try:
        if path.suffix == ".zst":
            raw = _unpacked(raw)
        return raw.decode("utf-8")
    except zstandard.ZstdError as error:
        raise ValueError(f"{path} is no whole zstd file ({error}): fetch it again") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text: convert the file") from None


def _unpacked(raw: bytes) -> bytes:
    """The content of all frames. Raises ZstdError, also where the last one was cut off: a stream's reader
    would give what there is."""
    content = b""
    while raw:
        frame = zstandard.ZstdDecompressor().decompressobj()
        content += frame.decompress(raw)
        if not frame.eof:
            raise zstandard.ZstdError("its end is missing")
        raw = frame.unused_data
    return content


def read_rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The objects of a JSON-lines file: line number, "file, line N" for messages, object. Raises ValueError
    naming the line that is none; empty lines are passed over."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: give an object, not {type(row).__name__}")
        yield number, where, row


def split_stories(text: str) -> list[str]:
    """Stories of a TinyStories slice: one newline parts stories, an empty line parts paragraphs.

    A short piece is a line of dialogue of the story before it, not a story. Where a slice has empty lines
    only (the held-out one), stories part at the classic openings; the first and last, which are cut, are left
    out.
    """
    if len(re.findall(r"(?<!\n)\n(?!\n)", text)) * 5000 < len(text):
        pieces = re.split(r"\n\n(?=Once |There once |There was once )", text)[1:-1] or text.split("\n\n")
        return [piece.strip() for piece in pieces if piece.strip() and len(piece) < _LONGEST_STORY]
    stories: list[str] = []
    for piece in re.split(r"(?<!\n)\n(?!\n)", text):
        piece = re.sub(r"[ \t]*\n\s*\n\s*", "\n\n", piece).strip()
        if len(piece) < 200 and stories:
            stories[-1] += "\n\n" + piece if piece else ""
        elif piece:
            stories.append(piece)
    return [story for story in stories if 200 < len(story) < _LONGEST_STORY and story[-1] in '.!?"']


def fit_names(text: str) -> frozenset[str]:
    """Words (lower case) that true-case text writes with a capital inside sentences."""
    upper: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for word in re.findall(r"(?<=[a-z,;] )[A-Za-z]+", text):
        total[word.lower()] += 1
        upper[word.lower()] += word[0].isupper()
    return frozenset(word for word, count in total.items() if upper[word] * 2 > count and len(word) > 1)


def fit_more_names(lower: str, cased: str) -> frozenset[str]:
    """Names of a lower-case text that `cased` does not know: words that speak or are called so, and that
    `cased` never writes small."""
    small = set(re.findall(r"\b[a-z]+", cased))
    found = re.findall(
        r"\b(?:named|said|asked) ([a-z]{3,})\b(?=[.,!])|\b([a-z]{3,}) (?:said|asked|smiled|nodded)\b", lower
    )
    counts = Counter(word for pair in found for word in pair if word)
    # A word that follows an article is a thing, however much it speaks.
    things = set(re.findall(r"\b(?:the|a|an|his|her|their|my|your|little|two|other) ([a-z]+)\b", lower))
    return frozenset(word for word in counts if word not in small and word not in things)


def recase(story: str, names: frozenset[str]) -> str:
    """A lower-case story with capitals at sentence starts, in quotes' starts, on `i` and on names."""
    own = set(re.findall(r"\b(?:named|called|name was|name is) ([a-z]{3,})\b", story)) - _COMMON
    story = re.sub(
        r"[a-z]+",
        lambda m: m.group().capitalize() if m.group() in names or m.group() in own else m.group(),
        story,
    )
    story = re.sub(rf"\b{_KIN}\b", lambda m: m.group().capitalize(), story)
    story = _OWNED_KIN.sub(lambda m: m.group(1) + m.group(2).lower(), story)
    story = re.sub(r"\bi\b(?!\.e)", "I", story)
    # A capital after a full stop, and at the start of speech unless the speech goes on after "he said,".
    return re.sub(
        r'(^["\']?|[.!?]["\']?\s+["\']?|\n\s*["\']?|, "|: "|said "|asked "|replied ")([a-z])',
        lambda m: m.group(1) + m.group(2).upper(),
        _SPEECH_GOES_ON.sub("\\1\u200b", story),
    ).replace("\u200b", "")


def split_passages(text: str, size: int = _PASSAGE_CHARACTERS) -> list[str]:
    """Passages of about `size` characters, cut at paragraph ends; longer paragraphs are cut at sentence
    ends."""
    passages: list[str] = []
    current = ""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = paragraph.strip()
        for block in re.findall(rf'.{{1,{size}}}(?:[.!?"]\s+|$)|.{{1,{size}}}', paragraph, re.S):
            if current and len(current) + len(block) > size:
                passages.append(current)
                current = ""
            current = f"{current}\n\n{block.strip()}" if current else block.strip()
    return [passage for passage in [*passages, current] if len(passage) > size // 4]


def _stories(path: Path) -> list[str]:
    return split_stories(read_text(path))


def _lower_stories(path: Path) -> list[str]:
    """The part of the lower-case file that the true-case file beside it does not have, re-cased."""
    cased = read_text(path.with_name("tinystories_en_b.txt.zst"))
    rest = read_text(path)[len(cased) :]
    names = fit_names(cased) | fit_more_names(rest, cased)
    return [recase(story, names) for story in split_stories(rest)[1:]]


def _passages(path: Path) -> list[str]:
    passages: list[str] = []
    for _, where, row in read_rows(path):
        for name in ("text", "lang"):
            if not isinstance(row.get(name), str):
                raise ValueError(f"{where}: {name} is missing or no string: give a text and its language")
        if row["lang"] == "en":
            passages += split_passages(row["text"])
    return passages


def _pairs(path: Path) -> list[str]:
    """Groups of eight sentence pairs a document, each on its line; the order is shuffled, once and always
    alike."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        row = line.split("\t")[:2]
        if len(row) < 2 or not row[0].strip() or not row[1].strip():
            raise ValueError(f"{path}, line {number}: give two sentences with a tab between them")
        rows.append(row)
    rng = Random(path.name)
    rng.shuffle(rows)
    lines = [" ".join(row if rng.random() < 0.5 else row[::-1]) for row in rows]
    return ["\n".join(lines[start : start + 8]) for start in range(0, len(lines), 8)]


READERS: dict[str, Callable[[Path], list[str]]] = {
    "stories": _stories,
    "lower_stories": _lower_stories,
    "passages": _passages,
    "pairs": _pairs,
}
_COMMON = frozenset(
    "the his her him that their this them for and not out over off with from you all after".split()
)
