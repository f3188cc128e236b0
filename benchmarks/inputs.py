"""Tensors of a step, and a check of an output against float64 on sampled rows."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from itertools import accumulate

import torch

from steps import BenchStep

MAX_COPIES = 64
# All copies of a cache take so many times the L2, as the caches of a model's layers do: then a call finds less than 1%
# of what it reads there. Of fewer it finds more, if reads are evicted first: what is there already stays.
COLD_L2S = 150
ROW_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
MAX_CHECKED_SEQS = 24
MAX_CHECKED_ROWS = 16


def cold_copies(kv_bytes: int, device: torch.device) -> int:
    """How many copies of a cache keep calls from finding in the L2 what earlier ones have read."""
    if device.type != "cuda":
        return 2
    wanted = COLD_L2S * torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(MAX_COPIES, -(-wanted // kv_bytes)))


class StepInputs:
    """Random q and K/V caches. A cache has copies, with the same contents, to rotate among: see cold_copies.

    q, caches, num_copies: given ones to use instead; caches are paged and at least as large.
    """

    def __init__(
        self,
        step: BenchStep,
        device: torch.device,
        seed: int,
        q: torch.Tensor | None = None,
        caches: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
        num_copies: int | None = None,
    ):
        self.step = step
        self.dtype = getattr(torch, step.dtype)
        self.device = device
        self._rng = random.Random(seed)
        generator = torch.Generator(device).manual_seed(seed)
        heads = step.heads

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, dtype=self.dtype, device=device, generator=generator)

        def int32(values: list) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        self.q_offsets = [0, *accumulate(q for q, _ in step.lengths)]
        self.k_offsets = [0, *accumulate(k for _, k in step.lengths)]
        self.q = normal(step.total_q, heads.q, heads.dim) if q is None else q
        self.cu_seqlens_q = int32(self.q_offsets)
        self.cu_seqlens_k = int32(self.k_offsets)
        self.seqused_k = int32([k for _, k in step.lengths])
        self.max_q = max(q for q, _ in step.lengths)
        self.max_k = max(k for _, k in step.lengths)
        if step.page_size:
            counts = [-(-k // step.page_size) for _, k in step.lengths]
            num_pages = sum(counts) if caches is None else caches[0][0].shape[0]
            order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)).int()
            table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
            for row, (end, count) in enumerate(zip(accumulate(counts), counts, strict=True)):
                table[row, :count] = order[end - count : end]
            self.block_table = table.to(device)
            size = (num_pages, step.page_size, heads.kv, heads.dim)
        else:
            self.block_table = None
            size = (step.total_k, heads.kv, heads.dim)
        if caches is not None:
            self.caches = caches
            return
        k, v = normal(*size), normal(*size)
        num_copies = num_copies or cold_copies(step.kv_bytes, device)
        self.caches = [(k, v)] + [(k.clone(), v.clone()) for _ in range(num_copies - 1)]

    def part(self, first: int, end: int) -> StepInputs:
        """Some of the sequences, in the same tensors. Of pages alone."""
        assert self.block_table is not None
        part = copy.copy(self)
        part.step = replace(self.step, lengths=self.step.lengths[first:end])
        part.q_offsets = [offset - self.q_offsets[first] for offset in self.q_offsets[first : end + 1]]
        part.q = self.q[self.q_offsets[first] : self.q_offsets[end]]
        part.cu_seqlens_q = torch.tensor(part.q_offsets, dtype=torch.int32, device=self.device)
        part.seqused_k, part.block_table = self.seqused_k[first:end], self.block_table[first:end]
        part.max_q = max(q for q, _ in part.step.lengths)
        part.max_k = max(k for _, k in part.step.lengths)
        return part

    def packed_kv(self, seq: int, num_keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = self.caches[0]
        if self.block_table is None:
            rows = slice(self.k_offsets[seq], self.k_offsets[seq] + num_keys)
            return k[rows], v[rows]
        pages = self.block_table[seq, : -(-num_keys // self.step.page_size)].long()
        return k[pages].flatten(0, 1)[:num_keys], v[pages].flatten(0, 1)[:num_keys]

    def check(self, out: torch.Tensor) -> tuple[float, str]:
        """(worst relative error of a sampled row, what is wrong or "")."""
        if not torch.isfinite(out).all():
            row = int((~torch.isfinite(out)).flatten(1).any(1).nonzero()[0])
            return float("inf"), f"row {row} of the output is not finite"
        worst, wrong = 0.0, ""
        for seq in self._sample():
            q_len, kv_len = self.step.lengths[seq]
            rows = min(q_len, MAX_CHECKED_ROWS)
            for first in {0, q_len - rows, self._rng.randint(0, q_len - rows)}:
                window = slice(self.q_offsets[seq] + first, self.q_offsets[seq] + first + rows)
                num_keys = kv_len - q_len + first + rows if self.step.causal else kv_len
                first_key = 0 if self.step.window is None else max(0, num_keys - rows - self.step.window)
                k, v = self.packed_kv(seq, num_keys)
                want = reference(self.q[window], k[first_key:], v[first_key:], self.step.causal, self.step.window)
                error = (out[window].double() - want).norm(dim=-1) / want.norm(dim=-1)
                worst = max(worst, float(error.max()))
                if not worst <= ROW_TOLERANCE[self.dtype] and not wrong:
                    row, head = divmod(int(error.argmax()), error.shape[1])
                    wrong = f"sequence {seq}, token {first + row}, head {head}: relative error {worst:.1e}"
        return worst, wrong

    def _sample(self) -> list[int]:
        count = len(self.step.lengths)
        ends = {0, count - 1, max(range(count), key=lambda i: self.step.lengths[i])}
        others = [i for i in range(count) if i not in ends]
        return sorted(ends) + self._rng.sample(others, min(len(others), MAX_CHECKED_SEQS - len(ends)))


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, window: int | None = None
) -> torch.Tensor:
    """Attention in float64, of few rows: q is (rows, Hq, D), K and V (keys, Hkv, D).

    The last row sees every key, or those of its window.
    """
    rows, keys = q.shape[0], k.shape[0]
    grouped = q.double().unflatten(1, (k.shape[1], -1))  # (rows, Hkv, G, D)
    scores = torch.einsum("rhgd,khd->hgrk", grouped, k.double()) / q.shape[2] ** 0.5
    if causal:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril(keys - rows)
        if window is not None:
            mask = mask.triu(keys - rows - window)
        scores.masked_fill_(~mask, -torch.inf)
    return torch.einsum("hgrk,khd->rhgd", scores.softmax(-1), v.double()).flatten(1, 2)
