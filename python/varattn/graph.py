"""One CUDA graph for every step of an engine: planner and attention, captured once for a capacity, replayed for any
batch up to it.

    def forward(batch):                                   # captured; runs on batch.num_tokens rows, padding included
        x = embed(tokens[: batch.num_tokens])             # the engine's own static buffers
        for layer in layers:
            q, k, v = layer.project(x)
            layer.cache.write(k, v)
            x = layer.rest(batch.attend(q, layer.cache.k, layer.cache.v, window_size=layer.window_size))
        return x

    runner = varattn.GraphRunner(forward, max_seqs=256, max_total_q=2048, max_pages_per_seq=4096, ...)
    x = runner.run(cu_seqlens_q, seqused_k, block_table, num_tokens=num_tokens)          # once a step
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from varattn.ops import mha_varlen, plan_many, plan_size, visible_window, workspace_size
from varattn.planner import Plan, check


class Batch:
    """The step in hand, in buffers that stay where they are: what a forward sees of it.

    Attributes:
        num_tokens: rows of q, padding included; a forward takes this many rows of its own buffers.
        cu_seqlens_q: (max_seqs + 1,) int32. Sequences past those of the step are empty.
        seqused_k: (max_seqs,) int32.
        block_table: (max_seqs, max_pages_per_seq) int32.
    """

    def __init__(self, max_seqs: int, max_pages_per_seq: int, device: torch.device):
        self.num_tokens = 0
        self.cu_seqlens_q = torch.zeros(max_seqs + 1, dtype=torch.int32, device=device)
        self.seqused_k = torch.zeros(max_seqs, dtype=torch.int32, device=device)
        self.block_table = torch.full((max_seqs, max_pages_per_seq), -1, dtype=torch.int32, device=device)
        self._plans: dict[tuple[int, int], Plan] = {}  # by visible window
        self._options: dict = {}  # of mha_varlen

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, window_size: Sequence[int] = (-1, -1), **options
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of one layer over its paged cache: varattn.mha_varlen with the step's lengths and plan.

        Args:
            q: (num_tokens, num_heads_q, head_dim).
            k, v: the layer's cache, in pages.
            window_size: one of the runner's window_sizes, or one that amounts to the same under its causal mask.
            options: of varattn.mha_varlen: softmax_scale, softcap, sinks, out, lse, return_lse, leave_padding.
        """
        window = visible_window(window_size, self._options["causal"])
        if window not in self._plans:
            known = ", ".join(map(str, self._plans))
            raise ValueError(
                f"Batch.attend: window_size: got {tuple(window_size)}; takes one of the runner's window_sizes, "
                f"which its mask makes {known}"
            )
        lengths = dict(seqused_k=self.seqused_k, block_table=self.block_table)
        plan = self._plans[window]
        return mha_varlen(
            q, k, v, self.cu_seqlens_q, **lengths, plan=plan, window_size=window, **self._options, **options
        )

    def _load(self, cu_seqlens_q: Tensor, seqused_k: Tensor, block_table: Tensor) -> None:
        _require_int32("cu_seqlens_q", cu_seqlens_q, 1)
        _require_int32("seqused_k", seqused_k, 1)
        _require_int32("block_table", block_table, 2)
        n, max_seqs = seqused_k.shape[0], self.seqused_k.shape[0]
        width, max_width = block_table.shape[1], self.block_table.shape[1]
        if n > max_seqs or width > max_width:
            name, got, most = ("seqused_k", n, max_seqs) if n > max_seqs else ("block_table", width, max_width)
            what = "sequences" if n > max_seqs else "pages a sequence"
            raise ValueError(f"GraphRunner.run: {name}: got {got} {what}; takes at most {most}")
        if cu_seqlens_q.shape[0] != n + 1 or block_table.shape[0] != n:
            raise ValueError(
                f"GraphRunner.run: cu_seqlens_q, block_table: got shapes {tuple(cu_seqlens_q.shape)}, "
                f"{tuple(block_table.shape)}; takes ({n + 1},), ({n}, pages), as seqused_k has {n} sequences"
            )
        self.cu_seqlens_q[: n + 1].copy_(cu_seqlens_q, non_blocking=True)
        self.cu_seqlens_q[n + 1 :].copy_(self.cu_seqlens_q[n : n + 1].expand(max_seqs - n))
        self.seqused_k[:n].copy_(seqused_k, non_blocking=True)
        self.seqused_k[n:].zero_()
        self.block_table[:n, :width].copy_(block_table, non_blocking=True)
        if width < max_width:  # or a length past the table would read the pages of an earlier step
            self.block_table[:n, width:].fill_(-1)


class GraphRunner:
    """Runs a forward for any step up to a capacity, through CUDA graphs that are captured on construction.

    A graph holds the planner and all that the forward launches. What a forward can't do in a captured graph (allocate
    outside PyTorch's pool, synchronise, look at lengths on the host) it must not do. There is a graph for each of
    `token_counts`; a step takes the smallest that holds its tokens. All share one memory pool, so what a run returns
    holds until the next run. On the CPU there are no graphs: every step runs eagerly.

    Args:
        forward: called with a Batch; returns anything, of which run() returns the static instance.
        max_seqs, max_total_q, max_pages_per_seq: the capacity: sequences, rows of q, pages of a sequence.
        window_sizes: all that the layers have, in any order and number: a plan is made for each different one.
        token_counts: rows of q, rising, that graphs are captured for; None: powers of two and max_total_q.
        graph_decode, graph_mixed: whether decode-only steps, and all others, go through graphs. Steps that go through
            none run eagerly, without padding.
        others: as of varattn.plan.
    """

    def __init__(
        self,
        forward: Callable[[Batch], object],
        *,
        max_seqs: int,
        max_total_q: int,
        max_pages_per_seq: int,
        num_heads_q: int,
        num_heads_kv: int,
        head_dim: int,
        head_dim_v: int | None = None,
        dtype: torch.dtype,
        device: torch.device | str,
        causal: bool = True,
        window_sizes: Sequence[Sequence[int]] = ((-1, -1),),
        num_splits: int = 0,
        batch_invariant: bool = False,
        sm_margin: int = 0,
        token_counts: Sequence[int] | None = None,
        graph_decode: bool = True,
        graph_mixed: bool = True,
    ):
        device = torch.device(device)
        self.token_counts = _token_counts(max_total_q) if token_counts is None else list(token_counts)
        counts = self.token_counts
        if not counts or counts != sorted(set(counts)) or counts[0] < 1 or counts[-1] != max_total_q:
            raise ValueError(
                f"GraphRunner: token_counts: got {counts}; takes rising numbers, the last max_total_q = {max_total_q}"
            )
        self._forward = forward
        self._uses_graph = {True: graph_decode, False: graph_mixed}
        self._batch = batch = Batch(max_seqs, max_pages_per_seq, device)
        shared = dict(causal=causal, num_splits=num_splits, batch_invariant=batch_invariant, sm_margin=sm_margin)
        heads = dict(num_heads_q=num_heads_q, num_heads_kv=num_heads_kv, head_dim=head_dim, head_dim_v=head_dim_v)
        self._plan_options = dict(max_total_q=max_total_q, dtype=dtype, **heads, **shared)
        self._windows = _different_windows(window_sizes, causal)
        sizes = dict(max_seqs=max_seqs, device=device, **self._plan_options)
        bytes_of = lambda size: [size(window_size=w, **sizes) for w in self._windows]  # noqa: E731
        buffer = lambda size: torch.zeros(size, dtype=torch.uint8, device=device)  # noqa: E731
        self._plan_buffers = [buffer(size) for size in bytes_of(plan_size)]
        batch._options = dict(workspace=buffer(max(bytes_of(workspace_size))), **shared)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, object]] = {}
        if device.type == "cuda" and (graph_decode or graph_mixed):
            with torch.cuda.device(device):
                self._capture()

    @property
    def plans(self) -> list[Plan]:
        """Of the last step, one for each different one of window_sizes."""
        return list(self._batch._plans.values())

    def run(
        self,
        cu_seqlens_q: Tensor,
        seqused_k: Tensor,
        block_table: Tensor,
        *,
        num_tokens: int,
        decode_only: bool = False,
    ) -> object:
        """Runs a step on the current stream: nothing synchronises, and a replay allocates nothing.

        Args:
            cu_seqlens_q: (num_seqs + 1,) int32, on the device or in (pinned) host memory.
            seqused_k: (num_seqs,) int32, likewise.
            block_table: (num_seqs, pages) int32, likewise. num_seqs and pages are up to the capacity.
            num_tokens: rows of q: what cu_seqlens_q ends with, as the host knows it, or more.
            decode_only: which of graph_decode and graph_mixed decides about this step.

        Returns:
            What the forward returned, for `padded_tokens(num_tokens)` rows where a graph ran it: rows past the last
            sequence have attention 0 (LSE -inf).
        """
        self._require_tokens("run", num_tokens)
        self._batch._load(cu_seqlens_q, seqused_k, block_table)
        if self._graphs and self._uses_graph[decode_only]:
            graph, result = self._graphs[self.padded_tokens(num_tokens)]
            graph.replay()
            return result
        return self._run_eagerly(num_tokens)

    def padded_tokens(self, num_tokens: int) -> int:
        """Rows of q in the graph that runs a step of so many tokens."""
        self._require_tokens("padded_tokens", num_tokens)
        return self.token_counts[bisect_left(self.token_counts, num_tokens)]

    def check(self) -> None:
        """varattn.check of every plan of the last step. Synchronises."""
        for plan in self.plans:
            check(plan)

    def _require_tokens(self, function: str, num_tokens: int) -> None:
        if not 0 <= num_tokens <= self.token_counts[-1]:
            raise ValueError(
                f"GraphRunner.{function}: num_tokens: got {num_tokens}; takes 0 to {self.token_counts[-1]}"
            )

    def _run_eagerly(self, num_tokens: int) -> object:
        batch = self._batch
        batch.num_tokens = num_tokens
        plans = plan_many(
            batch.cu_seqlens_q,
            window_sizes=self._windows,
            out=self._plan_buffers,
            seqused_k=batch.seqused_k,
            **self._plan_options,
        )
        batch._plans = dict(zip(self._windows, plans, strict=True))
        return self._forward(batch)

    def _capture(self) -> None:
        # The largest first: its pool serves the others.
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        for count in reversed(self.token_counts):
            with torch.cuda.stream(stream):
                self._run_eagerly(count)  # first calls may allocate and load; the lengths are 0
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                result = self._run_eagerly(count)
            self._graphs[count] = (graph, result)
        torch.cuda.current_stream().wait_stream(stream)


def _require_int32(name: str, given: Tensor, dims: int) -> None:
    takes = "an int32 tensor of shape " + ("(num_seqs, pages)" if dims == 2 else "(n,)")
    if not isinstance(given, Tensor):
        raise TypeError(f"GraphRunner.run: {name}: got {type(given).__name__}; takes {takes}")
    if given.dtype != torch.int32 or given.dim() != dims:
        raise ValueError(f"GraphRunner.run: {name}: got {given.dtype}, shape {tuple(given.shape)}; takes {takes}")


def _different_windows(window_sizes: Sequence[Sequence[int]], causal: bool) -> list[tuple[int, int]]:
    pairs = isinstance(window_sizes, Sequence) and all(
        isinstance(w, (tuple, list)) and len(w) == 2 for w in window_sizes
    )
    if not pairs or not window_sizes:
        raise ValueError(f"GraphRunner: window_sizes: got {window_sizes!r}; takes a sequence of (left, right)")
    return list(dict.fromkeys(visible_window(w, causal) for w in window_sizes))


def _token_counts(max_total_q: int) -> list[int]:
    powers = [1 << i for i in range(max_total_q.bit_length()) if 1 << i < max_total_q]
    return [*powers, max_total_q]
