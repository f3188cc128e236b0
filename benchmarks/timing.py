"""Kernel times: replays of CUDA graphs that hold many calls, alternating between the competitors.

A graph's calls walk through copies of the K/V cache that together are many times the L2, so every call finds it cold.
Only launches inside one graph are timed: host time is not part of the figures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

REPLAY_SECONDS = 0.010  # of one replay, so that the start of a graph does not matter
MAX_CALLS = 128
MIN_COPIES = 4  # of the cache, if there are so many, that long calls rotate among: memory does not bound them
SPIN_CYCLES = 1_000_000  # keeps the GPU busy while a replay is being submitted


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the 10th and 90th percentile, over replays."""

    median: float
    low: float
    high: float
    num_replays: int

    @staticmethod
    def of(samples: list[float]) -> Timing:
        ordered = sorted(samples)
        last = len(ordered) - 1
        return Timing(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))

    @property
    def spread(self) -> float:
        return (self.high - self.low) / self.median


class CapturedCalls:
    """A graph of `num_calls` calls; call(i) uses the i-th copy of the cache."""

    def __init__(self, call: Callable[[int], object], num_copies: int, num_calls: int | None = None):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call(0)
            begin, end = _events()
            begin.record()
            for i in range(3 if num_calls is None else 0):
                call(i % num_copies)
            end.record()
        end.synchronize()
        wanted = int(REPLAY_SECONDS / max(begin.elapsed_time(end) / 3000, 1e-6))
        num_copies = min(num_copies, max(wanted, MIN_COPIES))
        # Whole rounds through the copies, so that all are used alike.
        self.num_calls = num_calls or max(1, min(wanted, MAX_CALLS) // num_copies) * num_copies
        self._call = call  # holds the buffers that the graph reads and writes
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            for i in range(self.num_calls):
                call(i % num_copies)

    @staticmethod
    def once(call: Callable[[int], object]) -> CapturedCalls:
        """A graph of a single call, which is long in itself."""
        return CapturedCalls(call, 1, num_calls=1)

    def replay(self) -> float:
        """Seconds per call."""
        return _spun(self._graph.replay) / self.num_calls


class SpunCalls:
    """The same interface for a call that replays a graph of its own."""

    def __init__(self, call: Callable[[int], object]):
        self._call = call

    def replay(self) -> float:
        return _spun(lambda: self._call(0))


class EagerCalls:
    """The same interface on a CPU, for dry runs."""

    def __init__(self, call: Callable[[int], object], num_copies: int):
        self._call, self._num_copies, self._next = call, num_copies, 0

    def replay(self) -> float:
        begin = time.perf_counter()
        self._call(self._next % self._num_copies)
        self._next += 1
        return time.perf_counter() - begin


def captured(call: Callable[[int], object], num_copies: int, device: torch.device) -> CapturedCalls | EagerCalls:
    return (CapturedCalls if device.type == "cuda" else EagerCalls)(call, num_copies)


def time_alternating(
    competitors: dict[str, CapturedCalls | EagerCalls], seconds: float, min_rounds: int = 5, max_rounds: int = 100
) -> dict[str, Timing]:
    """Times all of them in turn, in changing order, for about `seconds` in total."""
    samples: dict[str, list[float]] = {name: [] for name in competitors}
    for calls in competitors.values():
        calls.replay()
    order = list(competitors)
    deadline = time.monotonic() + seconds
    for round_index in range(max_rounds if order else 0):
        if round_index >= min_rounds and time.monotonic() > deadline:
            break
        for name in order:
            samples[name].append(competitors[name].replay())
        order.append(order.pop(0))
    return {name: Timing.of(values) for name, values in samples.items()}


def measure_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(FLOP/s of a large matrix product, bytes/s of a large copy counting reads and writes)."""
    on_gpu = device.type == "cuda"
    n = 8192 if on_gpu else 256
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    c = torch.empty_like(a)
    source = torch.randn(2**28 if on_gpu else 2**20, device=device)
    target = torch.empty_like(source)
    times = time_alternating(
        {
            "matmul": captured(lambda _: torch.mm(a, b, out=c), 1, device),
            # A kernel that copies: copy_ of a large tensor goes another way, at two thirds of the rate.
            "copy": captured(lambda _: torch.neg(source, out=target), 1, device),
        },
        seconds=1.0 if on_gpu else 0.05,
    )
    return 2 * n**3 / times["matmul"].median, 2 * source.nbytes / times["copy"].median


def _spun(submit: Callable[[], object]) -> float:
    """Seconds that the GPU takes for what is submitted, without the time to submit it."""
    begin, end = _events()
    torch.cuda._sleep(SPIN_CYCLES)
    begin.record()
    submit()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
