"""Length traces of LLM services, and the steps that an engine with continuous batching makes of them.

The simulator keeps `max_running` sequences busy, as an engine under load does: a request is admitted as soon as there
is room, whatever its arrival time. Each step takes the decodes first, then fills the token budget with prefill chunks.
"""

from __future__ import annotations

import csv
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

DATA = Path(__file__).parent / "data"
EXCERPTS = {"conv": DATA / "azure_conv_excerpt.csv", "code": DATA / "azure_code_excerpt.csv"}
COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_TOKENS = 1 << 29  # the planner's limit on a sequence


class TraceError(ValueError):
    """A trace that can't be read, or a request that can't be served."""


@dataclass(frozen=True)
class Request:
    prompt: int  # tokens of the prompt
    generated: int  # tokens of the answer

    @property
    def kv_len(self) -> int:
        """Keys in the cache at its end: the last generated token is never attended from."""
        return self.prompt + self.generated - 1


def read_trace(path: str | Path, limit: int | None = None) -> list[Request]:
    """Requests of a CSV file with the columns TIMESTAMP, ContextTokens, GeneratedTokens; at most `limit` of them."""
    path = Path(path)
    requests: list[Request] = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [c for c in COLUMNS[1:] if c not in (reader.fieldnames or [])]
            if missing:
                found = ", ".join(reader.fieldnames or []) or "none"
                raise TraceError(f"{path}: no column {' or '.join(missing)}; takes {','.join(COLUMNS)}; found: {found}")
            for row in reader:
                if limit is not None and len(requests) >= limit:
                    break
                lengths = [_length(path, reader.line_num, column, row[column]) for column in COLUMNS[1:]]
                requests.append(Request(*lengths))
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: not a CSV text file: {error}") from error
    if not requests:
        raise TraceError(f"{path}: no requests in it")
    return requests


def _length(path: Path, line: int, column: str, text: str | None) -> int:
    try:
        value = int(text or "")
    except ValueError:
        value = 0
    if not 1 <= value < MAX_TOKENS:
        raise TraceError(f"{path}, line {line}: {column}: got {text!r}; takes a number from 1 to {MAX_TOKENS - 1}")
    return value


@dataclass(frozen=True)
class Chunk:
    """What one sequence does in a step: its last q_len of kv_len tokens are queries, new in the cache."""

    request: int  # index in the trace
    q_len: int
    kv_len: int
    pages: list[int]  # that hold its kv_len keys, in order
    is_prefill: bool


@dataclass(frozen=True)
class Step:
    index: int
    chunks: list[Chunk]
    released: list[int] = field(default_factory=list)  # pages that are free again after the step

    @property
    def prefill_tokens(self) -> int:
        return sum(c.q_len for c in self.chunks if c.is_prefill)

    @property
    def decode_tokens(self) -> int:
        return sum(c.q_len for c in self.chunks if not c.is_prefill)

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """(q_len, kv_len) of each sequence."""
        return [(c.q_len, c.kv_len) for c in self.chunks]


class PageAllocator:
    """Pages of a KV cache. They come in random order, as they do in an engine that has run for a while."""

    def __init__(self, num_pages: int, seed: int = 0):
        self._free = list(range(num_pages))
        random.Random(seed).shuffle(self._free)
        self._reserved = 0

    @property
    def num_available(self) -> int:
        """Pages that are neither in use nor promised."""
        return len(self._free) - self._reserved

    def reserve(self, count: int) -> bool:
        if count > self.num_available:
            return False
        self._reserved += count
        return True

    def take_reserved(self) -> int:
        self._reserved -= 1
        return self._free.pop()

    def release(self, pages: Iterable[int]) -> None:
        self._free.extend(pages)


@dataclass
class _Running:
    index: int
    request: Request
    kv_len: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def in_prefill(self) -> bool:
        return self.kv_len < self.request.prompt


class Simulator:
    """Steps of an engine with continuous batching and chunked prefill. Iterate over it.

    All pages that a request will need are reserved when it is admitted, so no sequence is ever evicted.
    With tokens_per_decode > 1, a decode submits that many tokens and all of them are accepted.
    """

    def __init__(
        self,
        requests: list[Request],
        *,
        max_running: int = 128,
        token_budget: int = 2048,
        page_size: int = 16,
        num_pages: int | None = None,
        tokens_per_decode: int = 1,
        seed: int = 0,
    ):
        for name, value in [
            ("max_running", max_running),
            ("token_budget", token_budget),
            ("page_size", page_size),
            ("tokens_per_decode", tokens_per_decode),
        ]:
            if value < 1:
                raise TraceError(f"Simulator: {name}: got {value}; takes at least 1")
        if max_running * tokens_per_decode > token_budget:
            raise TraceError(
                f"Simulator: token_budget: got {token_budget}; takes at least max_running x tokens_per_decode = "
                f"{max_running} x {tokens_per_decode}, so that every decode fits a step"
            )
        self.max_running = max_running
        self.token_budget = token_budget
        self.page_size = page_size
        self.tokens_per_decode = tokens_per_decode
        self.num_pages = default_num_pages(requests, max_running, page_size) if num_pages is None else num_pages
        self.max_pages_per_seq = max(self._pages_of(r.kv_len) for r in requests)
        if self.max_pages_per_seq > self.num_pages:
            raise TraceError(
                f"Simulator: num_pages: got {self.num_pages}; takes at least {self.max_pages_per_seq}, "
                "the pages of the longest request"
            )
        self._allocator = PageAllocator(self.num_pages, seed)
        self._waiting = deque(enumerate(requests))
        self._running: list[_Running] = []
        self._num_steps = 0

    def __iter__(self) -> Iterator[Step]:
        while (step := self.step()) is not None:
            yield step

    def step(self) -> Step | None:
        """The next step, or None at the end of the trace."""
        chunks: list[Chunk] = []
        budget = self.token_budget
        for seq in self._running:
            if not seq.in_prefill:
                q_len = min(self.tokens_per_decode, seq.request.kv_len - seq.kv_len)
                budget -= q_len
                chunks.append(self._advance(seq, q_len, is_prefill=False))
        for seq in self._running:
            if seq.in_prefill and budget > 0:
                budget -= self._prefill(seq, budget, chunks)
        while budget > 0 and (seq := self._admit()) is not None:
            budget -= self._prefill(seq, budget, chunks)
        if not chunks:
            return None

        done = [s for s in self._running if s.kv_len == s.request.kv_len]
        released = [page for s in done for page in s.pages]
        self._allocator.release(released)
        self._running = [s for s in self._running if s.kv_len < s.request.kv_len]
        step = Step(self._num_steps, chunks, released)
        self._num_steps += 1
        return step

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _admit(self) -> _Running | None:
        if not self._waiting or len(self._running) >= self.max_running:
            return None
        index, request = self._waiting[0]
        if not self._allocator.reserve(self._pages_of(request.kv_len)):
            return None
        self._waiting.popleft()
        self._running.append(_Running(index, request))
        return self._running[-1]

    def _prefill(self, seq: _Running, budget: int, chunks: list[Chunk]) -> int:
        q_len = min(budget, seq.request.prompt - seq.kv_len)
        chunks.append(self._advance(seq, q_len, is_prefill=True))
        return q_len

    def _advance(self, seq: _Running, q_len: int, is_prefill: bool) -> Chunk:
        seq.kv_len += q_len
        while len(seq.pages) < self._pages_of(seq.kv_len):
            seq.pages.append(self._allocator.take_reserved())
        return Chunk(seq.index, q_len, seq.kv_len, list(seq.pages), is_prefill)


def default_num_pages(requests: list[Request], max_running: int, page_size: int) -> int:
    """Pages for twice the average load, and for the longest request."""
    pages = [-(-r.kv_len // page_size) for r in requests]
    return max(max(pages), 2 * max_running * -(-sum(pages) // len(pages)))
