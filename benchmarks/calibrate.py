"""Measures what work costs on this GPU, for csrc/core/costs.h: `python benchmarks/calibrate.py`.

Steps that mix prefills and decodes run with a trace, on cold caches. A line is fitted to the times that tasks of each
kind took over their KV blocks. Decodes alone say what the memory delivers, and so how many CTAs saturate it. It prints
the table's rows, and how well the present costs and these foresee the steps. Costs decide about plans: after a change,
measure once more. VARATTN_KERNEL=portable measures the portable kernels. `--device cpu` is a dry run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
import typer
from rich.table import Table

import varattn
from varattn import host, timeline
from varattn.picture import FLAG_DECODE, simulate_queue

from bench import OurCalls, Settings, open_console
from inputs import StepInputs
from steps import GPT_OSS, LLAMA_8B, WIDE, BenchStep, Heads, decodes, prefills, ragged
from timing import captured, time_alternating

REPEATS = 5
BY_HEAD_DIM = {h.dim: h for h in (GPT_OSS, LLAMA_8B, WIDE)}


@dataclass(frozen=True)
class Costs:
    """In ns, as CostModel of csrc/core/schedule.h has them."""

    item: int
    block: int
    item_decode: int
    block_decode: int
    streaming_ctas: int

    def of(self, items: np.ndarray) -> np.ndarray:
        decode = is_decode(items)
        block = np.where(decode, self.block_decode, self.block)
        return np.where(decode, self.item_decode, self.item) + block * blocks_of(items)


def is_decode(items: np.ndarray) -> np.ndarray:
    return (items["flags"] & FLAG_DECODE) != 0


def blocks_of(items: np.ndarray) -> np.ndarray:
    return items["block_end"] - items["block_begin"]


@dataclass(frozen=True)
class TracedCall:
    """What a call's tasks took."""

    header: np.void
    items: np.ndarray
    tasks: np.ndarray  # of timeline.RECORD_DTYPE

    @staticmethod
    def of(calls: OurCalls, x: StepInputs) -> TracedCall:
        items = calls.plan.items()
        buffer = timeline.trace_buffer(3 * len(items) * x.step.heads.kv, x.device)
        for copy in range(len(x.caches)):  # the first comes last in the L2
            calls.attend(copy)
        calls.attend(0, trace=buffer)
        actual = timeline.read(buffer)
        assert actual.num_dropped == 0
        return TracedCall(calls.plan.header(), items, actual.tasks)

    @property
    def nanoseconds(self) -> int:
        return int(self.tasks["end_ns"].max())

    def foreseen(self, costs: np.ndarray) -> int:
        """The time of the queue if items cost this, in ns."""
        return simulate_queue(self.header, costs).makespan

    def samples(self, num_sms: int) -> np.ndarray:
        """(tasks, 3): whether a decode, KV blocks, ns. Without each SM's first task, which waits for the launch."""
        one_per_sm = int(self.header["config"]["num_ctas"]) <= num_sms
        rows = []
        for sm in np.unique(self.tasks["sm"]):
            here = np.sort(self.tasks[self.tasks["sm"] == sm], order="end_ns")
            begin, end = here["begin_ns"].astype(np.int64), here["end_ns"].astype(np.int64)
            # A CTA alone on its SM begins a task while the one before still ends.
            took = end[1:] - (np.maximum(begin[1:], end[:-1]) if one_per_sm else begin[1:])
            items = self.items[here["item"][1:]]
            rows.append(np.stack([is_decode(items), blocks_of(items), took], axis=1))
        return np.concatenate(rows)


def fit_line(blocks: np.ndarray, took: np.ndarray) -> tuple[int, int]:
    """(fixed, for each block), at least 1: least squares."""
    if len(np.unique(blocks)) < 2:
        raise ValueError(f"fit_line: blocks: got {len(np.unique(blocks))} different counts; takes 2 or more")
    each, fixed = np.polyfit(blocks.astype(float), took.astype(float), 1)
    return max(1, round(fixed)), max(1, round(each))


def fit(samples: np.ndarray, block_bytes: int, bytes_per_second: float, num_ctas: int) -> Costs:
    """samples: as TracedCall.samples. A kernel without decode mode prices all its tasks alike."""
    decode = samples[:, 0] == 1
    prefill_line = fit_line(*samples[~decode, 1:].T)
    decode_line = fit_line(*samples[decode, 1:].T) if decode.any() else prefill_line
    streaming = math.ceil(bytes_per_second * decode_line[1] * 1e-9 / block_bytes)
    return Costs(*prefill_line, *decode_line, min(max(streaming, 1), num_ctas))


def mixed_steps(heads: Heads) -> list[BenchStep]:
    steps = {
        "2k of 8k + 64 decodes": ((2048, 8192), *decodes(ragged(64, 128, 8192, 11))),
        "4 prefills + 96 decodes": prefills([256, 512, 1024, 1536]) + decodes(ragged(96, 128, 4096, 12)),
        "8 prefills of 200 + 32 decodes": prefills([200] * 8) + decodes(ragged(32, 512, 16384, 13)),
        "12 prefills": prefills(ragged(12, 64, 3000, 14)),
    }
    return [BenchStep(name, "mixed", lengths, heads) for name, lengths in steps.items()]


def table_row(kernel: str, device: str, c: Costs) -> str:
    name = "kKernel" + "".join(word.capitalize() for word in kernel.split("_"))
    return f'{{{name}, "{device}", {{{c.item}, {c.block}, {c.item_decode}, {c.block_decode}, {c.streaming_ctas}}}}},'


def calibrate(heads: Heads, settings: Settings, num_sms: int) -> tuple[str, Costs, list[tuple[str, TracedCall]]]:
    """The kernel's name, its costs, and the calls that these were fitted to."""
    on_gpu = settings.device.type == "cuda"
    traced = []
    for step in mixed_steps(heads):
        x = StepInputs(step if on_gpu else step.shrunk(16, 12), settings.device, settings.seed)
        calls = OurCalls(x, settings)
        traced += [(step.name, TracedCall.of(calls, x)) for _ in range(REPEATS if on_gpu else 1)]
        error, problem = x.check(calls.out)
        if problem:
            raise RuntimeError(f"calibrate: {step.name}: {problem} (relative error {error:.1e})")
    alone = BenchStep("decode alone", "decode", decodes([4096] * 128), heads)
    x = StepInputs(alone if on_gpu else alone.shrunk(), settings.device, settings.seed)
    timed = captured(OurCalls(x, settings).attend, len(x.caches), settings.device)
    seconds = time_alternating({"decode": timed}, 0.3)["decode"].median
    config = traced[0][1].header["config"]
    block_bytes = 2 * int(config["block_n"]) * heads.dim * x.q.element_size()
    samples = np.concatenate([call.samples(num_sms) for _, call in traced])
    costs = fit(samples, block_bytes, x.step.bytes / seconds, int(config["num_ctas"]))
    return host.kernels()[int(config["kernel"])]["name"], costs, traced


def main(
    head_dim: Annotated[list[int], typer.Option(help="Head dims to measure.")] = list(BY_HEAD_DIM),  # noqa: B006
    device: Annotated[str, typer.Option(help="cuda, or cpu for a dry run.")] = "cuda",
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
) -> None:
    console = open_console("calibrate", device)
    unknown = [d for d in head_dim if d not in BY_HEAD_DIM]
    if unknown:
        console.print(f"calibrate: --head-dim: got {unknown[0]}; takes {', '.join(map(str, BY_HEAD_DIM))}")
        raise typer.Exit(2)
    settings = Settings(torch.device(device), 0.0, kernel_only=True, sm_margin=0, num_splits=0, seed=seed)
    on_gpu = device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else ""
    num_sms = torch.cuda.get_device_properties(0).multi_processor_count if on_gpu else 1 << 20
    console.print(
        f"{name or 'CPU, a dry run'} | varattn {varattn.__version__} | torch {torch.__version__}", highlight=False
    )
    table = Table("kernel", "step", "took, us", "foreseen by present costs", "by these", title="Longest CTA")
    rows = []
    for dim in head_dim:
        heads = BY_HEAD_DIM[dim] if on_gpu else replace(BY_HEAD_DIM[dim], q=4, kv=2)
        kernel, costs, traced = calibrate(heads, settings, num_sms)
        rows.append(table_row(kernel, name, costs))
        for step in dict(traced):
            calls = [call for name_of_call, call in traced if name_of_call == step]
            took = float(np.median([call.nanoseconds for call in calls])) / 1000
            by_present, by_these = (
                calls[0].foreseen(c) / 1000 for c in (calls[0].items["cost"], costs.of(calls[0].items))
            )
            table.add_row(kernel, step, *(f"{us:.1f}" for us in (took, by_present, by_these)))
    console.print(table)
    console.print("\n".join(rows), highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
