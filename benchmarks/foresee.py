"""What plans should take, without a GPU: `python benchmarks/foresee.py --help`.

Steps of the traces are planned by the host planner for an H200, and the queue is simulated: CTAs take tasks from its
two ends, and decodes share the memory's bandwidth. A step is held against the time that it would take if all CTAs ended
together, so a plan that balances badly shows. Costs were fitted to the times of these steps on an H200; how well, says
docs/performance.md. With --measured, what trace_bench.py measured stands beside.
"""

from __future__ import annotations

import heapq
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from varattn import host
from varattn.picture import FLAG_DECODE, queue_order

from steps import BenchStep, Heads, chosen_traces, trace_steps

H200 = host.Device(90, 132, "NVIDIA H200")


@dataclass(frozen=True)
class Costs:
    """Of the Hopper engine at head dim 128, in us; rates in bytes a us."""

    start: float = 4.5  # of a launch
    prefill_task: float = 2.6
    prefill_block: float = 1.52
    prefill_piece: float = 6.0  # what a split tile's piece costs more
    decode_task: float = 2.5  # then its keys and values stream
    cta_rate: float = 90e3
    memory_rate: float = 4600e3


@dataclass(frozen=True)
class Task:
    compute: float  # us
    bytes: int = 0  # then streamed


@dataclass(frozen=True)
class Queue:
    tasks: list[Task]  # from the front to the back
    front_ctas: int
    num_ctas: int
    split_tiles: int
    section_heads: int

    @staticmethod
    def of(step: BenchStep, costs: Costs, **options) -> Queue:
        heads = step.heads
        plan = host.plan(
            [0, *accumulate(q for q, _ in step.lengths)],
            seqused_k=[k for _, k in step.lengths],
            num_heads_q=heads.q,
            num_heads_kv=heads.kv,
            head_dim=heads.dim,
            causal=step.causal,
            device=H200,
            **options,
        )
        header, config = plan.header, plan.header["config"]
        block_bytes = 2 * 2 * int(config["block_n"]) * heads.dim
        tasks = []
        for item in plan.items:
            blocks = int(item["block_end"] - item["block_begin"])
            if item["flags"] & FLAG_DECODE:
                tasks.append(Task(costs.decode_task, blocks * block_bytes))
            else:
                piece = costs.prefill_piece if item["num_splits"] > 1 else 0.0
                tasks.append(Task(costs.prefill_task + piece + blocks * costs.prefill_block))
        ordered = [tasks[task // heads.kv] for task in queue_order(header)]
        shares = int(header["num_front_ctas"]), int(config["num_ctas"])
        return Queue(ordered, *shares, int(header["num_split_tiles"]), int(header["section_heads"]))

    def least(self, costs: Costs) -> float:
        """us, if all CTAs ended together and the memory were never idle."""
        streamed = sum(t.bytes for t in self.tasks)
        work = sum(t.compute for t in self.tasks) + streamed / costs.cta_rate
        return costs.start + max(work / self.num_ctas, streamed / costs.memory_rate)

    def simulate(self, costs: Costs) -> float:
        """us, from the launch to the end of the last task."""
        front, back = 0, len(self.tasks) - 1
        computing: list[tuple[float, int, int]] = []  # a heap: end, CTA, bytes to stream then
        # Streams share the bandwidth equally, so all have received the same since they were `received` old.
        streaming: list[tuple[float, int]] = []  # a heap: `received` at the end, CTA
        now, received = costs.start, 0.0

        def take(cta: int) -> None:
            nonlocal front, back
            if front > back:
                return
            if cta < self.front_ctas:
                task, front = self.tasks[front], front + 1
            else:
                task, back = self.tasks[back], back - 1
            heapq.heappush(computing, (now + task.compute, cta, task.bytes))

        for cta in range(self.num_ctas):
            take(cta)
        while computing or streaming:
            rate = min(costs.cta_rate, costs.memory_rate / max(len(streaming), 1))
            stream_end = now + (streaming[0][0] - received) / rate if streaming else float("inf")
            if computing and computing[0][0] <= stream_end:
                end, cta, size = heapq.heappop(computing)
                received += rate * (end - now) if streaming else 0.0
                now = end
                if size > 0:
                    heapq.heappush(streaming, (received + size, cta))
                    continue
            else:
                now = stream_end
                received, cta = heapq.heappop(streaming)
            take(cta)
        return now


@dataclass(frozen=True)
class Foreseen:
    step: BenchStep
    queue: Queue
    us: float
    least_us: float
    measured_us: float | None = None


def foresee(steps: list[BenchStep], measured: dict[str, float], costs: Costs) -> Iterator[Foreseen]:
    for step in steps:
        queue = Queue.of(step, costs)
        whole = queue if queue.split_tiles == 0 else Queue.of(step, costs, num_splits=1)  # pieces are not least
        yield Foreseen(step, queue, queue.simulate(costs), whole.least(costs), measured.get(step.title))


def measured_times(file: Path, heads: str) -> dict[str, float]:
    """us of a layer planned alone, by the step's title, from trace_bench.py's JSON. Raises ValueError: other heads."""
    found = json.loads(file.read_text())
    if found["context"]["heads"] != heads:
        raise ValueError(
            f"--measured: {file}: got steps of {found['context']['heads']} heads; takes {heads}, as --heads"
        )
    steps = [step for trace in found["traces"].values() for step in trace["steps"]]
    return {s["title"]: s["times"]["planned alone"]["median"] * 1e6 for s in steps}


def main(
    traces: Annotated[str, typer.Option(help="Traces in whose name a word begins so.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each trace.")] = 40,
    whole: Annotated[
        Path | None, typer.Option(help="Folder with the whole traces, as trace_bench.py takes it.")
    ] = None,
    heads: Annotated[str, typer.Option(help="Query heads/KV heads.")] = "32/8",
    measured: Annotated[Path | None, typer.Option(help="The JSON of a trace_bench.py run on the same steps.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Steps of each trace to show: the worst.")] = 8,
) -> None:
    console, costs = Console(width=140), Costs()
    try:
        chosen, of_model = chosen_traces(traces, whole), Heads.parse(heads)
        times = measured_times(measured, heads) if measured else {}
    except ValueError as error:
        console.print(f"foresee: {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    for setting, file in chosen:
        found = list(foresee(trace_steps(setting, steps, file, of_model), times, costs))
        print_steps(console, setting.name, sorted(found, key=lambda f: f.least_us / f.us)[:show])
        total, least = sum(f.us for f in found), sum(f.least_us for f in found)
        line = f"{setting.name}: {total:.0f} us in {steps} steps, {total / least:.3f} of what balance allows"
        quotients = [f.measured_us / f.us for f in found if f.measured_us]
        if quotients:
            spread = statistics.pstdev(quotients)
            line += f"; measured over simulated {statistics.fmean(quotients):.3f} on average, deviation {spread:.3f}"
        console.print(line, highlight=False)


def print_steps(console: Console, name: str, found: list[Foreseen]) -> None:
    table = Table(title=f"{name}: the worst")
    for column in ("step", "longest prefills", "decodes", "front CTAs", "split tiles", "section heads"):
        table.add_column(column, justify="left" if column in ("step", "longest prefills") else "right")
    for column in ("us", "least us", "measured us"):
        table.add_column(column, justify="right")
    for f in found:
        decodes = [k for q, k in f.step.lengths if q <= 4]
        prefills = sorted(((k, q) for q, k in f.step.lengths if q > 4), reverse=True)[:3]
        table.add_row(
            f.step.name.split(", ")[-1],
            ", ".join(f"{q} of {k}" for k, q in prefills),
            f"{len(decodes)} x {sum(decodes) / max(len(decodes), 1):.0f}",
            *(str(n) for n in (f.queue.front_ctas, f.queue.split_tiles, f.queue.section_heads)),
            *(f"{us:.1f}" if us else "-" for us in (f.us, f.least_us, f.measured_us)),
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
