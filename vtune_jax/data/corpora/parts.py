"""The parts of a corpus, which workers read one by one, and which of their documents are kept on which side."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vtune_jax.data.corpora import embedded
from vtune_jax.data.corpora.config import EMBEDDED, CorpusConfig, DomainConfig
from vtune_jax.data.corpora.documents import DocumentReader, Span, spans
from vtune_jax.data.corpora.listing import files_of
from vtune_jax.data.corpora.texts import cut
from vtune_jax.machine.files import read_json, replacing, write_json, write_whole, written_whole
from vtune_jax.machine.work import WorkEngine, do_all

DROPPED, TRAIN, HELDOUT = 0, 1, 2  # the side of a document, one byte each in the file `sides` of its part
PROCESS_BYTES = 32 << 20
"""Sources that are together smaller than this are read by the calling process: starting others would take longer."""

_HASHES_AT_ONCE = 1 << 22  # hashes of documents compared at once, about
_SCANNED = np.dtype([("high", "<u8"), ("low", "<u8"), ("bytes", "<u4")])

Advance = Callable[[str, int, int], None]
"""Told of progress: name of the step, bytes just done, bytes in all."""


class Part(NamedTuple):
    """What one worker reads at a time."""

    domain: DomainConfig
    own_heldout: bool  # True: of `domain.heldout`; False: of `domain.source`
    source: str  # a file, or embedded:NAME
    span: Span | None  # of the file; None: all of it
    bytes: int  # about
    skip_bad: bool


class Task(NamedTuple):
    """A part, and where its files go."""

    part: Part
    prefix: str  # of its files


@dataclasses.dataclass
class Job:
    """The parts of a corpus, and a folder of files that record what has been done with each part."""

    folder: Path
    parts: list[Part]
    engine: WorkEngine
    workers: int  # processes
    advance: Advance

    def begin(self, config: CorpusConfig) -> None:
        """Keeps what an earlier call has done for the same config and sources, and deletes everything else."""
        stamps = [_stamp(part) for part in self.parts]
        key = json.dumps([dataclasses.asdict(config), stamps], default=str)
        file = self.folder / "key.json"
        if not (file.exists() and file.read_text(encoding="utf-8") == key):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_whole(file, key)

    def run(self, title: str, function: Callable[[Task], Any]) -> list[Any]:
        """Applies a function to all parts; the results of an earlier call are read from their files.

        Args:
            title: of the step; results are kept under this name.
            function: of one part; its result must be JSON.

        Returns:
            one result per part.
        """
        total = sum(part.bytes for part in self.parts)
        results: list[Any] = [None] * len(self.parts)
        open_parts = []
        for index, part in enumerate(self.parts):
            note = self.file(index, f"{title}.json")
            if note.exists():
                results[index] = read_json(note)
                self.advance(title, part.bytes, total)
            else:
                open_parts.append(index)
        tasks = [Task(self.parts[index], str(self.file(index, ""))) for index in open_parts]
        for number, result in do_all(function, tasks, engine=self.engine, workers=self.workers):
            index = open_parts[number]
            results[index] = result
            write_json(self.file(index, f"{title}.json"), result)
            self.advance(title, self.parts[index].bytes, total)
        return results

    def file(self, index: int, suffix: str) -> Path:
        """One of a part's files."""
        return self.folder / f"{index:06d}.{suffix}"

    def texts(self, index: int) -> Iterator[str]:
        """The kept training documents of a part."""
        sides = np.fromfile(self.file(index, "sides"), np.uint8)
        yield from compress(documents_of(self.parts[index]), sides == TRAIN)


def parts_of(domain: DomainConfig, config: CorpusConfig) -> Iterator[Part]:
    """The parts of a domain, in the order of its documents."""
    # Held-out documents go first, so that of two equal documents the training one is dropped.
    for source, own_heldout in ((domain.heldout, True), (domain.source, False)):
        if source.startswith(EMBEDDED):
            yield Part(domain, own_heldout, source, None, 1 << 20, config.skip_bad)
        elif source:
            for path in files_of(source, domain.name).files:
                within = spans(path)
                size = path.stat().st_size // len(within)
                yield from (Part(domain, own_heldout, str(path), span, size, config.skip_bad) for span in within)


def workers_for(parts: list[Part]) -> int:
    """Worker processes: one per core, or 1 (the calling process) if there is little to read."""
    if sum(part.bytes for part in parts) < PROCESS_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stamp(part: Part) -> list[Any]:
    if part.source.startswith(EMBEDDED):
        return [part.source]
    stat = os.stat(part.source)
    return [part.source, part.span, stat.st_size, stat.st_mtime_ns]


def _reader(part: Part) -> DocumentReader:
    return DocumentReader(text_field=part.domain.text_field, turn=part.domain.turn, skip_bad=part.skip_bad)


def documents_of(part: Part, reader: DocumentReader | None = None, filtered: list[int] | None = None) -> Iterator[str]:
    """Every document of a part, cut as its domain says, that is neither blank nor shorter or longer than allowed.

    Args:
        part: to read.
        reader: counts what it skips; None: a new one.
        filtered: gets an entry for each document that is too short or too long.
    """
    reader = reader or _reader(part)
    if part.source.startswith(EMBEDDED):
        texts: Iterable[str] = embedded.read(part.source.removeprefix(EMBEDDED))
    else:
        texts = reader.read(Path(part.source), part.span)
    low, high, most = part.domain.min_bytes, part.domain.max_bytes, part.domain.cut_bytes
    if most:
        texts = chain.from_iterable(cut(text, most) for text in texts)
    for text in texts:
        if not text.strip():
            continue
        if (low or high) and not low <= len(text.encode()) <= (high or 2**63):
            if filtered is not None:
                filtered.append(1)
            continue
        yield text


def scan(task: Task) -> list[int]:
    """Writes hash and length of each document of a part to a file; returns how many were skipped and filtered."""
    reader, filtered = _reader(task.part), list[int]()
    with written_whole(Path(task.prefix + "scan")) as out:
        unwritten = []
        for text in documents_of(task.part, reader, filtered):
            content = text.encode()
            digest = hashlib.sha256(content).digest()
            unwritten.append((int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big"), len(content)))
            if len(unwritten) == 1 << 12:
                np.array(unwritten, _SCANNED).tofile(out)
                unwritten = []
        np.array(unwritten, _SCANNED).tofile(out)
    return [reader.skipped, len(filtered)]


def choose(job: Job, config: CorpusConfig) -> list[np.ndarray]:
    """Writes the side of each document of each part.

    Returns:
        for each part training documents, held-out documents, duplicates, and bytes of training text.
    """
    # Sides are chosen by hashes alone, so that they depend neither on the order of documents nor on other domains.
    scanned = [_mapped(job.file(index, "scan"), _SCANNED) for index in range(len(job.parts))]
    with ExitStack() as stack:
        files = [stack.enter_context(replacing(job.file(index, "sides"))) for index in range(len(job.parts))]
        sides = [_blank(file, len(part)) for file, part in zip(files, scanned, strict=True)]
        _choose_sides(job.parts, scanned, sides, config.heldout_fraction)
        for domain in (*config.domains, config.base):
            if not (domain.heldout or domain.is_tokens):
                mine = [index for index, part in enumerate(job.parts) if part.domain is domain]
                _fill_both_sides([scanned[index] for index in mine], [sides[index] for index in mine])
        for side in sides:
            if isinstance(side, np.memmap):
                side.flush()
    return _chosen(scanned, sides)


def _choose_sides(
    parts: list[Part], scanned: list[np.ndarray], sides: list[np.ndarray], heldout_fraction: float
) -> None:
    """Fills `sides`, which begin as zeros."""
    slices = max(1, -(-sum(map(len, scanned)) // _HASHES_AT_ONCE))
    for number in range(slices):
        low, high = (number << 64) // slices, (((number + 1) << 64) // slices) - 1
        places = [np.flatnonzero((part["high"] >= low) & (part["high"] <= high)) for part in scanned]
        if not any(map(len, places)):
            continue
        hashes = np.concatenate([part[place][["high", "low"]] for part, place in zip(scanned, places, strict=True)])
        # Stable, so that the first of equal documents comes first.
        order = np.lexsort((hashes["low"], hashes["high"]))
        ordered = hashes[order]
        first = np.ones(len(order), bool)
        first[1:] = (ordered["high"][1:] != ordered["high"][:-1]) | (ordered["low"][1:] != ordered["low"][:-1])
        kept = np.zeros(len(order), bool)
        kept[order[first]] = True
        ends = np.cumsum([len(place) for place in places])
        for part, place, mine, scan, side in zip(parts, places, np.split(kept, ends[:-1]), scanned, sides, strict=True):
            if part.own_heldout:
                chosen = np.full(len(place), HELDOUT, np.uint8)
            elif part.domain.heldout:
                chosen = np.full(len(place), TRAIN, np.uint8)
            else:
                bound = np.uint64(min(int(heldout_fraction * 2**64), 2**64 - 1))
                chosen = np.where(scan["high"][place] < bound, HELDOUT, TRAIN).astype(np.uint8)
            side[place] = np.where(mine, chosen, DROPPED)


def _fill_both_sides(scanned: list[np.ndarray], sides: list[np.ndarray]) -> None:
    """Where chance has left a side of a domain empty, gives it the document whose hash is nearest to its own."""
    for empty, other, sign in ((HELDOUT, TRAIN, 1), (TRAIN, HELDOUT, -1)):
        if any((side == empty).any() for side in sides) or sum(int((side == other).sum()) for side in sides) < 2:
            continue
        nearest = []
        for index, (scan, side) in enumerate(zip(scanned, sides, strict=True)):
            places = np.flatnonzero(side == other)
            if len(places):
                order = np.lexsort((scan["low"][places], scan["high"][places]))[::sign]
                place = int(places[order[0]])
                nearest.append((sign * int(scan["high"][place]), sign * int(scan["low"][place]), index, place))
        *_, index, place = min(nearest)
        sides[index][place] = empty


def _chosen(scanned: list[np.ndarray], sides: list[np.ndarray]) -> list[np.ndarray]:
    """For each part training documents, held-out documents, duplicates, and bytes of training text."""
    return [
        np.array(
            [
                (side == TRAIN).sum(),
                (side == HELDOUT).sum(),
                (side == DROPPED).sum(),
                scan["bytes"][side == TRAIN].sum(dtype=np.int64),
            ]
        )
        for side, scan in zip(sides, scanned, strict=True)
    ]


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def _blank(path: Path, size: int) -> np.ndarray:
    """A file of zeros, mapped, so that a byte per document takes no memory of the process."""
    path.write_bytes(b"")
    return np.memmap(path, np.uint8, "w+", shape=(size,)) if size else np.zeros(0, np.uint8)
