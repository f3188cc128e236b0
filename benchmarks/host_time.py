"""Host time of a call: what a step costs the CPU, in us: `python benchmarks/host_time.py [--device cpu]`.

A call returns once its launch is queued. The step is tiny, so that the queue never fills. On the CPU the step has no
rows: what is left is the time of the bindings and checks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer

import varattn

HEADS_Q, HEADS_KV, DIM, PAGE = 32, 8, 128, 16
CALLS, ROUNDS = 100, 21


def median_us(call: Callable[[], object], device: str) -> float:
    """Median over rounds of the mean over calls."""
    samples = []
    for _ in range(ROUNDS):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        samples.append((time.perf_counter() - begin) / CALLS * 1e6)
    return statistics.median(samples[1:])


def calls(device: str) -> dict[str, Callable[[], object]]:
    rows = 2 if device == "cuda" else 0
    make = dict(dtype=torch.bfloat16, device=device)
    q, out = (torch.zeros(rows, HEADS_Q, DIM, **make) for _ in range(2))
    k, v = (torch.zeros(8, PAGE, HEADS_KV, DIM, **make) for _ in "kv")
    int32 = lambda values: torch.tensor(values, dtype=torch.int32, device=device)  # noqa: E731
    cu, used, table = int32([0, rows // 2, rows]), int32([5, 9]), int32([[0], [1]])
    heads = dict(num_heads_q=HEADS_Q, num_heads_kv=HEADS_KV, head_dim=DIM, dtype=torch.bfloat16, causal=True)
    capacity = dict(max_seqs=2, max_total_q=2, device=device)
    workspace = torch.zeros(varattn.workspace_size(**capacity, **heads), dtype=torch.uint8, device=device)
    plan = varattn.plan(cu, seqused_k=used, max_total_q=2, **heads)
    lengths = dict(seqused_k=used, block_table=table)
    given = dict(lengths, workspace=workspace, causal=True, out=out)
    no_q, empty = q[:0], dict(given, out=out[:0])
    op = torch.ops.varattn.mha_varlen.out

    def forward(batch):
        return batch.attend(q[: batch.num_tokens], k, v, out=out[: batch.num_tokens])

    runner = varattn.GraphRunner(
        forward, max_seqs=2, max_total_q=2, max_pages_per_seq=1, device=device, token_counts=[2],
        **{name: value for name, value in heads.items() if name != "causal"},
    )  # fmt: skip
    return {
        "varattn.plan(out=)": lambda: varattn.plan(cu, seqused_k=used, max_total_q=2, out=plan, **heads),
        "varattn.mha_varlen, buffers given": lambda: varattn.mha_varlen(q, k, v, cu, plan=plan, **given),
        "torch.ops.varattn.mha_varlen.out": lambda: op(q, k, v, cu, plan=plan.buffer, max_total_q=2, **given),
        "  the same on no rows: no launch": lambda: op(no_q, k, v, cu, plan=plan.buffer, max_total_q=2, **empty),
        "varattn.mha_varlen, nothing given": lambda: varattn.mha_varlen(q, k, v, cu, **lengths, causal=True),
        "GraphRunner.run, a step": lambda: runner.run(cu, used, table, num_tokens=rows),
        "torch: a tiny kernel (out.zero_())": lambda: out.zero_(),
    }


def main(device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda") -> None:
    for name, call in calls(device).items():
        print(f"{name:40s} {median_us(call, device):7.1f} us")


if __name__ == "__main__":
    typer.run(main)
