"""Runs the steps of a simulated engine through varattn, and checks sampled rows against the float64 reference.

All buffers are static and as large as the capacity, as an engine that captures CUDA graphs keeps them: fewer sequences
than the capacity leave empty ones at the end, and rows of q past the last sequence are padding.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import torch

import varattn
from varattn import timeline
from varattn.planner import ITEM_DTYPE
from varattn.trace import Chunk, Simulator, Step

# Largest error of an output row, ||row - reference|| / ||reference||, and of an LSE. Inputs are N(0, 1).
TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.float16: (4e-3, 2e-3), torch.bfloat16: (2.5e-2, 2e-3)}
MAX_CHECKED_ROWS = 64  # of a sequence: a contiguous window at a random place


@dataclass(frozen=True)
class Shape:
    num_heads_q: int
    num_heads_kv: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    num_splits: int = 0


@dataclass(frozen=True)
class StepResult:
    step: Step
    num_items: int
    num_split_tiles: int
    seconds: float  # of the attention call
    num_checked: int  # sequences
    max_error: float  # of the checked rows
    problem: str  # "" if all is well


class PagedCache:
    """K and V in pages. Slots that hold no token are NaN, so that reading one shows in the output."""

    def __init__(self, num_pages: int, page_size: int, shape: Shape, generator: torch.Generator):
        size = (num_pages, page_size, shape.num_heads_kv, shape.head_dim)
        self.k = torch.full(size, torch.nan, dtype=shape.dtype, device=shape.device)
        self.v = torch.full_like(self.k, torch.nan)
        self.page_size = page_size
        self._generator = generator

    def append(self, chunks: list[Chunk]) -> None:
        """Random keys and values for the new tokens of each sequence."""
        slots = [
            c.pages[p // self.page_size] * self.page_size + p % self.page_size
            for c in chunks
            for p in range(c.kv_len - c.q_len, c.kv_len)
        ]
        index = torch.tensor(slots, device=self.k.device)
        for cache in (self.k, self.v):
            rows = cache.view(-1, *cache.shape[2:])
            rows[index] = torch.randn(
                len(slots), *rows.shape[1:], dtype=cache.dtype, device=cache.device, generator=self._generator
            )

    def release(self, pages: list[int]) -> None:
        if pages:
            index = torch.tensor(pages, device=self.k.device)
            self.k[index] = torch.nan
            self.v[index] = torch.nan

    def packed(self, chunk: Chunk, num_keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first keys and values of a sequence, in order."""
        pages = torch.tensor(chunk.pages, device=self.k.device)
        return tuple(cache[pages].flatten(0, 1)[:num_keys] for cache in (self.k, self.v))


class StepRunner:
    def __init__(self, simulator: Simulator, shape: Shape, *, checked_sequences: int, seed: int):
        self.shape = shape
        self._checked_sequences = checked_sequences
        self._rng = random.Random(seed)
        device = shape.device
        generator = torch.Generator(device).manual_seed(seed)
        self._generator = generator
        self.cache = PagedCache(simulator.num_pages, simulator.page_size, shape, generator)

        self._max_seqs, max_total_q = simulator.max_running, simulator.token_budget
        self._q = torch.zeros(max_total_q, shape.num_heads_q, shape.head_dim, dtype=shape.dtype, device=device)
        self._cu_seqlens_q = torch.zeros(self._max_seqs + 1, dtype=torch.int32, device=device)
        self._seqused_k = torch.zeros(self._max_seqs, dtype=torch.int32, device=device)
        self._block_table = torch.zeros(self._max_seqs, simulator.max_pages_per_seq, dtype=torch.int32, device=device)
        self._out = torch.empty_like(self._q)
        self._lse = torch.empty(shape.num_heads_q, max_total_q, dtype=torch.float32, device=device)
        self._plan_arguments = dict(
            num_heads_q=shape.num_heads_q,
            num_heads_kv=shape.num_heads_kv,
            head_dim=shape.head_dim,
            dtype=shape.dtype,
            causal=True,
            num_splits=shape.num_splits,
        )
        capacity = dict(max_seqs=self._max_seqs, max_total_q=max_total_q, device=device)
        plan_bytes = varattn.plan_size(**capacity, **self._plan_arguments)
        workspace_bytes = varattn.workspace_size(**capacity, **self._plan_arguments)
        self._plan_buffer = torch.zeros(plan_bytes, dtype=torch.uint8, device=device)
        self._workspace = torch.zeros(workspace_bytes, dtype=torch.uint8, device=device)
        self._is_warm = False
        self.plan: varattn.Plan | None = None  # of the last step

    def skip(self, step: Step) -> None:
        """Fills the cache as the step would, without attention."""
        self.cache.append(step.chunks)
        self.cache.release(step.released)

    def run(self, step: Step) -> StepResult:
        return self._run(step, None)

    def run_traced(self, step: Step) -> tuple[StepResult, timeline.Timeline]:
        """As run, and what the call tells of itself."""
        max_items = len(self._plan_buffer) // ITEM_DTYPE.itemsize
        trace = timeline.trace_buffer(3 * max_items * self.shape.num_heads_kv, self.shape.device)
        return self._run(step, trace), timeline.read(trace)

    def _run(self, step: Step, trace: torch.Tensor | None) -> StepResult:
        self.cache.append(step.chunks)
        self._load(step)
        self.plan = varattn.plan(
            self._cu_seqlens_q,
            seqused_k=self._seqused_k,
            max_total_q=self._q.shape[0],
            out=self._plan_buffer,
            **self._plan_arguments,
        )
        seconds = self._attend(trace)
        problem, max_error, num_checked = "", 0.0, 0
        try:
            varattn.check(self.plan)
        except varattn.PlanError as error:
            problem = f"the plan reports: {error}"
        offsets = self._cu_seqlens_q.tolist()
        for index in self._sample(step.chunks):
            error, wrong = self._check(step.chunks[index], index, offsets[index])
            max_error = max(max_error, error)
            num_checked += 1
            problem = problem or wrong
        problem = problem or self._check_padding(offsets[-1])
        header = self.plan.header()
        self.cache.release(step.released)
        return StepResult(
            step=step,
            num_items=int(header["num_items"]),
            num_split_tiles=int(header["num_split_tiles"]),
            seconds=seconds,
            num_checked=num_checked,
            max_error=max_error,
            problem=problem and f"step {step.index}: {problem}",
        )

    def _load(self, step: Step) -> None:
        """Copies the step into the static buffers. Whatever the operator must not read is hostile."""
        chunks = step.chunks
        offsets = [0]
        for c in chunks:
            offsets.append(offsets[-1] + c.q_len)
        offsets += offsets[-1:] * (self._max_seqs - len(chunks))
        lengths = [c.kv_len for c in chunks] + [0] * (self._max_seqs - len(chunks))
        table = torch.full(self._block_table.shape, -1, dtype=torch.int32)
        for row, c in enumerate(chunks):
            table[row, : len(c.pages)] = torch.tensor(c.pages, dtype=torch.int32)
        self._cu_seqlens_q.copy_(torch.tensor(offsets, dtype=torch.int32))
        self._seqused_k.copy_(torch.tensor(lengths, dtype=torch.int32))
        self._block_table.copy_(table)
        self._q.normal_(generator=self._generator)
        self._q[offsets[-1] :] = torch.nan
        self._out.fill_(torch.nan)
        self._lse.fill_(torch.nan)

    def _attend(self, trace: torch.Tensor | None) -> float:
        def call(trace: torch.Tensor | None = None) -> None:
            varattn.mha_varlen(
                self._q,
                self.cache.k,
                self.cache.v,
                self._cu_seqlens_q,
                seqused_k=self._seqused_k,
                block_table=self._block_table,
                plan=self.plan,
                workspace=self._workspace,
                causal=True,
                num_splits=self.shape.num_splits,
                out=self._out,
                lse=self._lse,
                return_lse=True,
                trace=trace,
            )

        if self.shape.device.type != "cuda":
            begin = time.perf_counter()
            call(trace)
            return time.perf_counter() - begin
        if not self._is_warm:
            call()
            self._is_warm = True
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        call(trace)
        events[1].record()
        events[1].synchronize()
        return events[0].elapsed_time(events[1]) / 1000

    def _sample(self, chunks: list[Chunk]) -> list[int]:
        """The longest prefill and the longest decode, and others at random."""
        by_length = sorted(range(len(chunks)), key=lambda i: (chunks[i].q_len, chunks[i].kv_len))
        longest = [i for kind in (True, False) for i in [j for j in by_length if chunks[j].is_prefill == kind][-1:]]
        others = [i for i in range(len(chunks)) if i not in longest]
        count = max(0, min(self._checked_sequences - len(longest), len(others)))
        return longest[: self._checked_sequences] + self._rng.sample(others, count)

    def _check(self, chunk: Chunk, index: int, q_begin: int) -> tuple[float, str]:
        """Compares a window of a sequence's rows: they are a sequence of their own that ends at an earlier key."""
        rows = min(chunk.q_len, MAX_CHECKED_ROWS)
        first = self._rng.randint(0, chunk.q_len - rows)
        num_keys = chunk.kv_len - chunk.q_len + first + rows
        k, v = self.cache.packed(chunk, num_keys)
        window = slice(q_begin + first, q_begin + first + rows)
        want, want_lse = varattn.reference.mha_varlen(
            self._q[window],
            k,
            v,
            torch.tensor([0, rows], dtype=torch.int32, device=k.device),
            cu_seqlens_k=torch.tensor([0, num_keys], dtype=torch.int32, device=k.device),
            causal=True,
        )
        error = (self._out[window].double() - want.double()).norm(dim=-1) / want.double().norm(dim=-1)
        lse_error = (self._lse[:, window].double() - want_lse.double()).abs()
        limit, lse_limit = TOLERANCE[self.shape.dtype]
        wrong = ""
        bad = ~(error <= limit) | ~(lse_error.T <= lse_limit)  # so that NaN is bad
        if bad.any():
            row, head = bad.nonzero()[0].tolist()
            wrong = (
                f"sequence {index} (q_len {chunk.q_len}, kv_len {chunk.kv_len}), token {first + row}, head {head}: "
                f"relative error {error[row, head]:.2e} (limit {limit:.0e}), "
                f"LSE error {lse_error[head, row]:.2e} (limit {lse_limit:.0e})"
            )
        return float(error.nan_to_num(nan=torch.inf).max()), wrong

    def _check_padding(self, q_end: int) -> str:
        if (self._out[q_end:] != 0).any() or (self._lse[:, q_end:] != -torch.inf).any():
            return f"rows from {q_end} belong to no sequence and are not 0 with LSE -inf"
        return ""
