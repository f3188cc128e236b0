"""The headline: steps of an engine serving real traces, against the floor and FlashAttention-3.

`python benchmarks/trace_bench.py --help`. Each step runs as one layer of a model of LAYERS layers would see it:

- varattn, one graph: varattn.GraphRunner, captured once for the capacity of the engine and replayed for every step; its
  time is that of planner and layers together, over the layers;
- varattn, one graph, padding left: the same with leave_padding=True, for engines that do not read rows of padding;
- varattn, planned alone: planner and layers with buffers made for this very step;
- varattn, invariant: as planned alone, with batch_invariant=True, which splits nothing;
- varattn, invariant, 32 splits: the same with num_splits=32;
- FA3 in its three ways (bench.py), its plan not counted.

All run on the same pages, captured in graphs, alternating; every output is checked against float64 before it is timed.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import varattn

from bench import Settings, describe, open_console
from inputs import StepInputs, cold_copies
from peers import SPLITS_BOUND, Fa3
from steps import LLAMA_8B, TRACES, BenchStep, Heads, TraceSetting, chosen_traces, trace_steps
from timing import CapturedCalls, EagerCalls, SpunCalls, Timing, measure_rates, time_alternating

LAYERS = 32
ONE_GRAPH, PADDING_LEFT, ALONE = "one graph", "one graph, padding left", "planned alone"
INVARIANT, INVARIANT_SPLITS, PLAN = "invariant", f"invariant, {SPLITS_BOUND} splits", "plan"
FA3_BOUND = f"FA3 plan {SPLITS_BOUND}"


@dataclass
class StepTimes:
    step: BenchStep
    floor: float
    times: dict[str, Timing]  # seconds of a layer; PLAN: of one plan
    problems: list[str] = field(default_factory=list)

    def time(self, name: str) -> float | None:
        """Of a way of ours, or of FA3's; "FA3": the best of its ways."""
        if name == "FA3":
            return min((t.median for n, t in self.times.items() if n.startswith("FA3")), default=None)
        return self.times[name].median if name in self.times else None


@dataclass(frozen=True)
class Figure:
    """A figure of a trace's sums, and what it is held to."""

    name: str
    value: float | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def verdict(self) -> str:
        if self.value is None or (self.at_least is None and self.at_most is None):
            return ""
        value = round(self.value, 2)  # as the table shows it
        ok = value >= self.at_least if self.at_least is not None else value <= self.at_most
        bound = f">= {self.at_least:.2f}" if self.at_least is not None else f"<= {self.at_most:.2f}"
        return f"{bound} {'met' if ok else 'MISSED'}"


# Per trace, of 32/8 heads: FA3 with its bound of splits over ours, at least; the floor over ours, at least.
TARGETS = {TRACES[0].name: (1.25, 0.90), TRACES[1].name: (1.60, None), TRACES[2].name: (1.50, None)}


def figures(trace: str, rows: list[StepTimes]) -> list[Figure]:
    def total(name: str) -> float | None:
        times = [r.time(name) for r in rows]
        return None if None in times or not times else sum(times)

    def over(a: float | None, b: float | None) -> float | None:
        return a / b if a and b else None

    ours = total(ONE_GRAPH)
    has_targets = rows[0].step.heads == LLAMA_8B
    fa3_ratio, share, most_one_graph, most_invariant = (*TARGETS[trace], 1.02, 1.15) if has_targets else (None,) * 4
    return [
        Figure("floor over one graph", over(sum(r.floor for r in rows), ours), at_least=share),
        Figure(f"{FA3_BOUND} over one graph", over(total(FA3_BOUND), ours), at_least=fa3_ratio),
        Figure("FA3's best of each step over one graph", over(total("FA3"), ours)),
        Figure("one graph over planned alone", over(ours, total(ALONE)), at_most=most_one_graph),
        Figure(f"{PADDING_LEFT}, over planned alone", over(total(PADDING_LEFT), total(ALONE))),
        Figure("invariant over planned alone", over(total(INVARIANT), total(ALONE)), at_most=most_invariant),
        Figure(f"{INVARIANT_SPLITS}, over planned alone", over(total(INVARIANT_SPLITS), total(ALONE))),
    ]


class Pool:
    """Pages, queries and the runners that all steps of a trace share."""

    def __init__(self, setting: TraceSetting, steps: list[BenchStep], settings: Settings):
        self.steps = steps
        device, step = settings.device, steps[0]
        heads, dtype = step.heads, getattr(torch, step.dtype)
        generator = torch.Generator(device).manual_seed(settings.seed)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, dtype=dtype, device=device, generator=generator)

        pages = lambda s: sum(-(-k // s.page_size) for _, k in s.lengths)  # noqa: E731
        size = (max(map(pages, steps)), step.page_size, heads.kv, heads.dim)
        k, v = normal(*size), normal(*size)
        # Two layers may share one, or small GPUs would have no room.
        num_copies = min(cold_copies(min(s.kv_bytes for s in steps), device), LAYERS // 2)
        self.caches = [(k, v)] + [(k.clone(), v.clone()) for _ in range(num_copies - 1)]
        max_total_q = max(setting.token_budget if device.type == "cuda" else 0, *(s.total_q for s in steps))
        max_seqs = max(setting.max_running if device.type == "cuda" else 0, *(len(s.lengths) for s in steps))
        self.q = normal(max_total_q, heads.q, heads.dim)
        self.out = torch.full_like(self.q, torch.nan)
        self.options = dict(num_heads_q=heads.q, num_heads_kv=heads.kv, head_dim=heads.dim, dtype=dtype, causal=True)
        capacity = dict(
            max_seqs=max_seqs,
            max_total_q=max_total_q,
            max_pages_per_seq=max(-(-k // s.page_size) for s in steps for _, k in s.lengths),
        )
        self.runners = {
            name: varattn.GraphRunner(
                partial(self._layers, leave_padding=name == PADDING_LEFT),
                token_counts=[max_total_q],
                device=device,
                **capacity,
                **self.options,
            )
            for name in (ONE_GRAPH, PADDING_LEFT)
        }

    def _layers(self, batch: varattn.Batch, leave_padding: bool) -> None:
        n = batch.num_tokens
        for layer in range(LAYERS):
            cache = self.caches[layer % len(self.caches)]
            batch.attend(self.q[:n], *cache, out=self.out[:n], leave_padding=leave_padding)

    def inputs(self, step: BenchStep, settings: Settings) -> StepInputs:
        return StepInputs(step, settings.device, settings.seed, q=self.q[: step.total_q], caches=self.caches)


class PlannedAlone:
    """Planner and layers, with buffers made for this very step."""

    def __init__(self, pool: Pool, x: StepInputs, batch_invariant: bool = False, num_splits: int = 0):
        schedule = dict(batch_invariant=batch_invariant, num_splits=num_splits)
        options = pool.options | schedule
        size = varattn.workspace_size(len(x.step.lengths), x.step.total_q, device=x.device, **options)
        workspace = torch.zeros(size, dtype=torch.uint8, device=x.device)
        self.out = torch.full_like(x.q, torch.nan)
        first = varattn.plan(x.cu_seqlens_q, seqused_k=x.seqused_k, max_total_q=x.step.total_q, **options)
        self.plan = first

        def plan(_: int = 0) -> varattn.Plan:
            arguments = dict(seqused_k=x.seqused_k, max_total_q=x.step.total_q, out=first)
            return varattn.plan(x.cu_seqlens_q, **arguments, **options)

        def layers(_: int = 0) -> None:
            made = plan()
            for layer in range(LAYERS):
                lengths = dict(seqused_k=x.seqused_k, block_table=x.block_table)
                given = dict(plan=made, workspace=workspace, out=self.out, causal=True, **schedule)
                varattn.mha_varlen(x.q, *x.caches[layer % len(x.caches)], x.cu_seqlens_q, **lengths, **given)

        self.make_plan, self.layers = plan, layers


class Layers:
    """A competitor whose call does LAYERS layers."""

    def __init__(self, calls: CapturedCalls | SpunCalls | EagerCalls):
        self._calls = calls

    def replay(self) -> float:
        return self._calls.replay() / LAYERS


def measure(
    pool: Pool, step: BenchStep, rates: tuple[float, float], fa3: Fa3 | None, settings: Settings, seconds: float
) -> StepTimes:
    row = StepTimes(step, max(step.flops / rates[0], step.bytes / rates[1]), {})
    x = pool.inputs(step, settings)
    on_gpu = settings.device.type == "cuda"
    once = CapturedCalls.once if on_gpu else (lambda call: EagerCalls(call, 1))
    competitors: dict[str, object] = {}

    def add(name: str, calls: CapturedCalls | SpunCalls | EagerCalls, out: torch.Tensor) -> None:
        problem = x.check(out[: step.total_q])[1]
        if problem:
            row.problems.append(f"{name}: wrong: {problem}")
        else:
            competitors[name] = Layers(calls)

    for name, runner in pool.runners.items():

        def run(_: int = 0, runner=runner) -> None:
            runner.run(x.cu_seqlens_q, x.seqused_k, x.block_table, num_tokens=step.total_q)

        pool.out.fill_(torch.nan)
        run()
        runner.check()
        add(name, SpunCalls(run) if on_gpu else EagerCalls(run, 1), pool.out)
    schedules = {
        ALONE: {},
        INVARIANT: dict(batch_invariant=True),
        INVARIANT_SPLITS: dict(batch_invariant=True, num_splits=SPLITS_BOUND),
    }
    for name, schedule in schedules.items():
        alone = PlannedAlone(pool, x, **schedule)
        alone.layers()
        varattn.check(alone.plan)
        add(name, once(alone.layers), alone.out)
        if name == ALONE:
            competitors[PLAN] = CapturedCalls(alone.make_plan, 1) if on_gpu else EagerCalls(alone.make_plan, 1)
    if fa3 is not None:
        out = torch.full_like(x.q, torch.nan)
        for name, make in fa3.ways(x, out, 0).items():
            call = make()
            out.fill_(torch.nan)
            call(0)

            def layers(_: int = 0, call=call) -> None:
                for layer in range(LAYERS):
                    call(layer % len(x.caches))

            add(name, once(layers), out)
    row.times = time_alternating(competitors, seconds)
    return row


def main(
    fa3: Annotated[Path | None, typer.Option(help="vLLM's _vllm_fa3_C.abi3.so, to compare with.")] = None,
    traces: Annotated[str, typer.Option(help="Traces in whose name a word begins so.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each trace.")] = 40,
    whole: Annotated[
        Path | None,
        typer.Option(help="Folder with the whole traces, a CSV file each: their steps, not those of our excerpts."),
    ] = None,
    page_size: Annotated[int, typer.Option(min=1, help="Tokens of a page.")] = 16,
    heads: Annotated[
        str, typer.Option(help="Query heads/KV heads: 8/1, say, for one of the 8 GPUs that share a model.")
    ] = "32/8",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Write a PNG here.")] = None,
    seconds: Annotated[float, typer.Option(help="Time for the replays of a step.")] = 0.3,
    device: Annotated[str, typer.Option(help="cuda, or cpu for a dry run of tiny steps.")] = "cuda",
    seed: Annotated[int, typer.Option(help="Of the inputs; drawn if not given.")] = -1,
) -> None:
    console = open_console("trace_bench", device, fa3)
    try:
        chosen, of_model = chosen_traces(traces, whole), Heads.parse(heads)
    except ValueError as error:
        console.print(f"trace_bench: {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    seed = seed if seed >= 0 else time.time_ns() % 2**31
    settings = Settings(torch.device(device), seconds, False, 0, 0, seed)
    peer = Fa3(fa3) if fa3 is not None else None
    rates = measure_rates(settings.device, torch.bfloat16)
    context = describe(settings, {"bfloat16": rates}, fa3) | {"page size": str(page_size), "layers": str(LAYERS)}
    context["heads"] = heads
    context["requests"] = "whole traces" if whole else "excerpts"
    console.print(" | ".join(f"{name}: {value}" for name, value in context.items()), highlight=False)
    results: dict[str, list[StepTimes]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen) * steps)
        for setting, file in chosen:
            picked = [replace(s, page_size=page_size) for s in trace_steps(setting, steps, file, of_model)]
            if device == "cpu":
                picked = [s.shrunk() for s in picked]
            pool = Pool(setting, picked, settings)
            rows = results.setdefault(setting.name, [])
            for step in picked:
                progress.update(task, description=step.title)
                rows.append(measure(pool, step, rates, peer, settings, seconds if device == "cuda" else 0.0))
                if json_file:  # after each step, so that a run that is cut short leaves what it has
                    write_json(json_file, context, results)
                progress.advance(task)
            del pool
    print_tables(console, results, dry=device == "cpu")
    if plot_file:
        plot(plot_file, results, context)
    problems = [f"{r.step.title}: {p}" for rows in results.values() for r in rows for p in r.problems]
    for problem in problems:
        console.print(f"[red]{problem}[/]", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if problems else 0)


def print_tables(console: Console, results: dict[str, list[StepTimes]], dry: bool) -> None:
    names = [ONE_GRAPH, PADDING_LEFT, ALONE, INVARIANT, INVARIANT_SPLITS, "FA3", FA3_BOUND]
    title = "Dry run of tiny steps: no times are claimed" if dry else "us of a layer, summed over the steps"
    table = Table(title=title, caption=f"plan: us of one plan, the median over steps; {ONE_GRAPH} has it in it")
    for name in ("trace", "steps", "floor", *names, PLAN):
        table.add_column(name, justify="left" if name == "trace" else "right")
    for trace, rows in results.items():
        sums = [sum(r.floor for r in rows)]
        sums += [sum(times) if None not in (times := [r.time(n) for r in rows]) else None for n in names]
        plans = sorted(r.time(PLAN) for r in rows)
        cells = [f"{s * 1e6:.0f}" if s is not None else "-" for s in sums]
        table.add_row(trace, str(len(rows)), *cells, f"{plans[len(plans) // 2] * 1e6:.1f}")
    console.print(table)
    table = Table(title="Ratios of the sums")
    table.add_column("figure")
    for trace in results:
        table.add_column(trace, justify="right")
    columns = [figures(trace, rows) for trace, rows in results.items()]
    for line in zip(*columns, strict=True):
        cells = ["-" if f.value is None else f"{f.value:.2f}" + ("" if dry else f" {f.verdict}") for f in line]
        table.add_row(line[0].name, *cells)
    console.print(table)


def write_json(path: Path, context: dict[str, str], results: dict[str, list[StepTimes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    traces = {
        trace: {
            "figures": {f.name: {"value": f.value, "verdict": f.verdict} for f in figures(trace, rows)},
            "steps": [
                {
                    "title": r.step.title,
                    "lengths": r.step.lengths,
                    "floor": r.floor,
                    "times": {name: vars(t) for name, t in r.times.items()},
                    "problems": r.problems,
                }
                for r in rows
            ],
        }
        for trace, rows in results.items()
    }
    path.write_text(json.dumps({"context": context, "traces": traces}, indent=1))


def plot(path: Path, results: dict[str, list[StepTimes]], context: dict[str, str]) -> None:
    """A panel for each trace: us of every step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Picture(figsize=(11, 3.2 * len(results)), layout="constrained")
    FigureCanvasAgg(picture)
    panels = picture.subplots(len(results), 1, squeeze=False)[:, 0]
    lines = [("FA3", "FA3, best way of each step", "#b9b9b9"), (FA3_BOUND, "FA3, 32 splits, as in graphs", "#7a7a7a")]
    lines.append((ONE_GRAPH, "varattn, one graph", "#3b6fb6"))
    for axes, (trace, rows) in zip(panels, results.items(), strict=True):
        places = range(len(rows))
        axes.fill_between(places, [r.floor * 1e6 for r in rows], color="#e8e8e8", step="mid", label="floor")
        for name, label, colour in lines:
            times = [r.time(name) for r in rows]
            if None not in times:
                axes.step(places, [t * 1e6 for t in times], color=colour, where="mid", label=label)
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
        axes.set_ylabel("us of a layer")
        share, ratio = (f.value for f in figures(trace, rows)[:2])
        title = f"{trace}: {share:.0%} of the floor" if share else trace
        axes.set_title(title + (f", FA3 with 32 splits takes {ratio:.2f} x" if ratio else ""), fontsize=10)
        axes.legend(fontsize=8, loc="upper left", ncols=4)
    panels[-1].set_xlabel("step")
    picture.suptitle(f"{context['device']}, varattn {context['varattn']}", fontsize=10)
    picture.savefig(path, dpi=130)


if __name__ == "__main__":
    typer.run(main)
