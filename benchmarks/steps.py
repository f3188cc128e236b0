"""The steps that varattn is measured on: (q_len, kv_len) of every sequence, and the shape of the attention.

Ragged lengths are drawn with fixed seeds, so every run measures the same steps.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from varattn.trace import EXCERPTS, Simulator, TraceError, read_trace

PACKED = 0  # as a page size


@dataclass(frozen=True)
class Heads:
    q: int
    kv: int
    dim: int = 128

    @staticmethod
    def parse(text: str) -> Heads:
        """Of "32/8": query heads, KV heads. Raises ValueError, which names the option."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        q, kv = map(int, match.groups()) if match else (0, 0)
        if kv == 0 or q == 0 or q % kv:
            raise ValueError(f"--heads: got {text!r}; takes query heads/KV heads, whole groups of them, such as 32/8")
        return Heads(q, kv)


LLAMA_8B = Heads(32, 8)
LLAMA_8B_TP8 = Heads(8, 1)
QWEN_7B = Heads(28, 4)
GPT_OSS = Heads(64, 8, 64)
WIDE = Heads(16, 8, 256)


@dataclass(frozen=True)
class BenchStep:
    name: str
    kind: str  # prefill, decode, spec, mixed, skew, trace
    lengths: tuple[tuple[int, int], ...]  # (q_len, kv_len)
    heads: Heads = LLAMA_8B
    page_size: int = 16  # or PACKED
    causal: bool = True
    dtype: str = "bfloat16"
    sms: int | None = None  # SMs that both sides may use; None: all
    window: int | None = None  # of a causal step: keys before a query's own that it sees; None: all

    @property
    def title(self) -> str:
        pages = f"p{self.page_size}" if self.page_size else "packed"
        return f"{self.name}, {pages}" + ("" if self.dtype == "bfloat16" else f", {self.dtype}")

    def title_for(self, **changes) -> str:
        """The title of a step that differs in these fields alone."""
        return replace(self, **changes).title

    @property
    def total_q(self) -> int:
        return sum(q for q, _ in self.lengths)

    @property
    def total_k(self) -> int:
        return sum(k for _, k in self.lengths)

    @property
    def flops(self) -> int:
        """Of both products, visible (query, key) pairs only."""
        pairs = sum(visible_pairs(q, k, self.window) if self.causal else q * k for q, k in self.lengths)
        return 4 * pairs * self.heads.q * self.heads.dim

    @property
    def kv_bytes(self) -> int:
        return 2 * self.total_k * self.heads.kv * self.heads.dim * self._element_bytes

    @property
    def bytes(self) -> int:
        """The least that must move: q, K and V read once, out written once."""
        seen = sum(min(k, q + (k if self.window is None else self.window)) for q, k in self.lengths if q > 0)
        kv = 2 * seen * self.heads.kv * self.heads.dim
        return (2 * self.total_q * self.heads.q * self.heads.dim + kv) * self._element_bytes

    @property
    def _element_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    def shrunk(self, factor: int = 64, max_seqs: int = 6) -> BenchStep:
        """A tiny step of the same kind, for dry runs."""
        lengths = tuple((max(1, q // factor) if q > 1 else q, max(1, k // factor)) for q, k in self.lengths)
        few = lengths[: max_seqs // 2] + lengths[max_seqs // 2 :][-max_seqs // 2 :]
        return replace(self, lengths=few)


def visible_pairs(q_len: int, kv_len: int, window: int | None = None) -> int:
    """(query, key) pairs under a causal mask: the last query sees every key, or those of its window."""

    def triangle(n: int) -> int:
        return n * (n + 1) // 2 if n > 0 else 0

    hidden = 0 if window is None else triangle(kv_len - 1 - window) - triangle(kv_len - q_len - 1 - window)
    return triangle(kv_len) - triangle(kv_len - q_len) - hidden


def ragged(count: int, low: int, high: int, seed: int, skew: float = 1.0) -> list[int]:
    rng = random.Random(seed)
    return [int(low + (high - low) * rng.random() ** skew) for _ in range(count)]


def decodes(lengths: list[int], q_len: int = 1) -> tuple[tuple[int, int], ...]:
    return tuple((q_len, n) for n in lengths)


def prefills(lengths: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple((n, n) for n in lengths)


PREFILLS = (
    ("prefill 1x16k causal", prefills([16384])),
    ("prefill 4x4k causal", prefills([4096] * 4)),
    ("prefill 16x1k causal", prefills([1024] * 16)),
    ("prefill ragged 32 causal", prefills(ragged(32, 16, 2048, 1, 2.0))),
    ("chunk 2k of 32k", ((2048, 32768),)),
)


def fixed_steps() -> list[BenchStep]:
    steps = []
    for name, lengths in PREFILLS:
        for page_size in (PACKED, 16, 128):  # one after the other: they are compared, and clocks drift
            steps.append(BenchStep(name, "prefill", lengths, page_size=page_size))
    steps += [
        BenchStep("prefill 1x16k full", "prefill", prefills([16384]), page_size=PACKED, causal=False),
        BenchStep("prefill 4x4k causal d64", "prefill", prefills([4096] * 4), GPT_OSS, PACKED),
        BenchStep("prefill 4x4k causal d256", "prefill", prefills([4096] * 4), WIDE, PACKED),
    ]
    skewed = decodes(ragged(128, 64, 32768, 2, 3.0))
    for page_size in (16, 128):
        for name, kind, lengths, heads in [
            ("decode b1 k64k", "decode", decodes([65536]), LLAMA_8B),
            ("decode b16 k8k", "decode", decodes([8192] * 16), LLAMA_8B),
            ("decode b128 k4k", "decode", decodes([4096] * 128), LLAMA_8B),
            ("decode ragged b128", "decode", skewed, LLAMA_8B),
            ("decode ragged b128 tp8", "decode", skewed, LLAMA_8B_TP8),
            ("decode b1024 k1k", "decode", decodes([1024] * 1024), LLAMA_8B),
            ("spec q4 b32 ragged", "spec", decodes(ragged(32, 512, 16384, 3), 4), LLAMA_8B),
            (
                "mixed 2k chunk + 63 decode",
                "mixed",
                ((2048, 4096), *decodes(ragged(63, 128, 16384, 4, 2.0))),
                LLAMA_8B,
            ),
            (
                "mixed qwen7b 128dec + 4x1k",
                "mixed",
                prefills([1024] * 4) + decodes(ragged(128, 128, 8192, 5)),
                QWEN_7B,
            ),
            ("mixed 2x2k + 128 dec 4k", "mixed", prefills([2048] * 2) + decodes([4096] * 128), LLAMA_8B),
            (
                "mixed 1 long decode + 31 short prefill",
                "mixed",
                decodes([65536]) + prefills([64] * 31),
                LLAMA_8B,
            ),
        ]:
            steps.append(BenchStep(name, kind, lengths, heads, page_size))
        lengths = decodes([4096] * 128)
        steps.append(BenchStep("decode b128 k4k on 48 SMs", "decode", lengths, page_size=page_size, sms=48))
    for count in (900, 1000):
        lengths = decodes([131072] + [256] * (count - 1))
        steps.append(BenchStep(f"skew 1x128k + {count - 1}x256", "skew", lengths))
    return steps


@dataclass(frozen=True)
class TraceSetting:
    name: str
    excerpt: str
    max_running: int
    tokens_per_decode: int = 1
    token_budget: int = 2048


TRACES = (
    TraceSetting("azure conv, 128 running", "conv", 128),
    TraceSetting("azure code, 64 running", "code", 64),
    TraceSetting("azure conv, 128 running, 4 tokens a decode", "conv", 128, 4),
)


def trace_steps(
    setting: TraceSetting, count: int, trace_file: Path | None = None, heads: Heads = LLAMA_8B
) -> list[BenchStep]:
    """`count` steps of a trace, evenly spaced between the filling of the engine and the last admission.

    Of `trace_file`, or of the excerpt that ships with the package.
    """
    simulator = Simulator(
        read_trace(trace_file or EXCERPTS[setting.excerpt]),
        max_running=setting.max_running,
        token_budget=setting.token_budget,
        tokens_per_decode=setting.tokens_per_decode,
    )
    lengths, last = [], 0
    for step in simulator:
        lengths.append(tuple(step.lengths))
        if step.prefill_tokens:
            last = step.index
    first = min(last // 3, setting.max_running)
    chosen = [first + (last - first) * i // count for i in range(count)]
    return [BenchStep(f"{setting.name}, step {i}", "trace", lengths[i], heads) for i in chosen]


def named(option: str, part: str, things: Iterable) -> list:
    """Those in whose name a word begins with `part`. Raises ValueError, which names the option, if there is none."""
    found = [thing for thing in things if re.search(rf"\b{re.escape(part)}", thing.name)]
    if not found:
        raise ValueError(
            f"{option}: got {part!r}; takes the beginning of a word of: {'; '.join(t.name for t in things)}"
        )
    return found


def chosen_traces(traces: str, whole: Path | None) -> list[tuple[TraceSetting, Path | None]]:
    """As options --traces and --whole ask for them, with the file of each if it is not its excerpt.

    Raises ValueError if they ask for what there is not.
    """
    return [(t, whole_trace(whole, t) if whole else None) for t in named("--traces", traces, TRACES)]


def whole_trace(folder: Path, setting: TraceSetting) -> Path:
    """The file of a folder that has the requests of which the setting's excerpt is a part, by its name."""
    found = sorted(folder.glob(f"*{setting.excerpt}*.csv"))
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise TraceError(f"--whole: {folder}: takes one CSV file with '{setting.excerpt}' in its name; got {names}")
    return found[0]
