"""Costs that should follow from others, or be small: `python benchmarks/sweep.py --help`.

- splits: the plan's number of splits against the best bound on it, and FA3's best fixed number with --fa3, over batch
  sizes, KV heads and lengths;
- tokens: four tokens a sequence against one;
- window: a window of 128 at 128k keys against the same at 1k;
- heads: the KV bandwidth at a group size against that at a group of 8;
- invariant: batch-invariant calls on long sequences with a bound of 32 splits against the best that splits nothing, of
  ours or, with --fa3, of FA3;
- padding: decodes with rows of padding, as in a graph captured for more tokens, whose outputs the launch before has
  left at 0, against the same with leave_padding=True;
- plans: the planner on 1,024 sequences against 5 us.

Outputs are checked against float64 before they are timed. `--device cpu` is a dry run of tiny steps, without times.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import OurCalls, Settings, describe, open_console
from inputs import StepInputs, cold_copies
from peers import SPLITS_BOUND, Fa3
from steps import TRACES, BenchStep, Heads, decodes, named, ragged, trace_steps
from timing import captured, measure_rates, time_alternating

MAX_KV_BYTES = 16e9
PLAN_US = 5.0
SPLIT_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Point:
    """A step's quality, 1 for the best: its reference is another step, or the same run in another way."""

    name: str
    us: float
    reference_us: float
    reference: str
    quality: float


@dataclass(frozen=True)
class Sweep:
    name: str
    run: Callable[[Runner], Iterator[Point]]
    least: float  # quality, of a share of the points
    share: float = 1.0
    least_of_all: float = 0.0
    digits: int = 2  # of a quality

    def verdict(self, points: list[Point]) -> str:
        good = sum(round(p.quality, self.digits) >= round(self.least, self.digits) for p in points) / len(points)
        worst = min(p.quality for p in points)
        met = good >= self.share and round(worst, self.digits) >= self.least_of_all
        least_of_all = max(self.least_of_all, self.least if self.share == 1 else 0)
        return (
            f"{good:.0%} of {len(points)} at {self.text(self.least)} or more (target {self.share:.0%}), "
            f"the worst {self.text(worst)} (target {self.text(least_of_all)}): {'met' if met else 'MISSED'}"
        )

    def text(self, quality: float) -> str:
        return f"{quality:.{self.digits}f}"


class Runner:
    """Times steps, after a check of their outputs."""

    def __init__(self, settings: Settings, fa3: Fa3 | None, every: int):
        self.settings, self.fa3, self.every = settings, fa3, every
        self.problems, self.notes = list[str](), list[str]()
        self.on_gpu = settings.device.type == "cuda"

    def times(
        self,
        step: BenchStep,
        bounds: tuple[int, ...] = (0,),
        fa3_bounds: tuple[int, ...] = (),
        batch_invariant: bool = False,
        num_copies: int | None = None,
    ) -> dict[str, float]:
        """Seconds of a call, by the bound on splits ("0": the default), and by FA3's number of splits ("FA3, 4")."""
        step = step if self.on_gpu else step.shrunk()
        x = StepInputs(step, self.settings.device, self.settings.seed, num_copies=num_copies)
        calls = {}
        for bound in bounds:
            ours = OurCalls(x, replace(self.settings, num_splits=bound, batch_invariant=batch_invariant))
            self._check(ours, x, f"{bound} splits")
            calls[str(bound)] = captured(ours.attend, len(x.caches), self.settings.device)
        if fa3_bounds and self.fa3:
            out = torch.full_like(x.q, torch.nan)
            for bound in fa3_bounds:
                plan = self.fa3.plan(x, bound)
                call = lambda copy, n=bound, plan=plan: self.fa3.attend(x, copy, out, plan, n)  # noqa: E731
                out.fill_(torch.nan)
                call(0)
                wrong = x.check(out)[1]
                if wrong:  # it is no competitor
                    self.notes.append(f"{step.title}, FA3, {bound} splits: wrong: {wrong}")
                else:
                    calls[f"FA3, {bound}"] = captured(call, len(x.caches), self.settings.device)
        timed = time_alternating(calls, self.settings.seconds)
        return {name: t.median for name, t in timed.items()}

    def time(self, step: BenchStep, num_copies: int | None = None) -> float:
        return self.times(step, num_copies=num_copies)["0"]

    def padded_times(self, step: BenchStep, padding: int) -> tuple[float, float]:
        """Seconds of a call with rows of padding, and with these left alone."""
        step = step if self.on_gpu else step.shrunk()
        x = StepInputs(step, self.settings.device, self.settings.seed)
        calls = {}
        for leave_padding in (False, True):
            ours = OurCalls(x, self.settings, padding, leave_padding)
            self._check(ours, x, f"{padding} rows of padding")
            rest = ours.out[step.total_q :]
            if not (rest.isnan() if leave_padding else rest == 0).all():
                wrong = "written" if leave_padding else "not all 0"
                self.problems.append(f"{step.title}, {padding} rows of padding: they were {wrong}")
            calls[leave_padding] = captured(ours.attend, len(x.caches), self.settings.device)
        timed = time_alternating(calls, self.settings.seconds)
        return timed[False].median, timed[True].median

    def plan_time(self, step: BenchStep) -> float:
        """Seconds of a plan, which has served once."""
        step = step if self.on_gpu else step.shrunk()
        x = StepInputs(step, self.settings.device, self.settings.seed)
        ours = OurCalls(x, self.settings)
        self._check(ours, x, "a plan")
        plans = {"plan": captured(ours.make_plan, 1, self.settings.device)}
        return time_alternating(plans, self.settings.seconds)["plan"].median

    def _check(self, ours: OurCalls, x: StepInputs, what: str) -> None:
        ours.attend(0)
        problem = x.check(ours.out[: x.step.total_q])[1]
        if problem:
            self.problems.append(f"{x.step.title}, {what}: {problem}")


def over_splits(runner: Runner) -> Iterator[Point]:
    steps = [
        BenchStep(f"{batch} x {keys}, {heads.q}/{heads.kv} heads", "decode", decodes([keys] * batch), heads)
        for heads in (Heads(4, 1), Heads(8, 2), Heads(32, 8))
        for batch in (1, 2, 4, 8, 16, 32, 64)
        for keys in (512, 2048, 8192, 32768, 131072, 262144)
    ]
    for step in [step for step in steps if step.kv_bytes <= MAX_KV_BYTES][:: runner.every]:
        times = runner.times(step, (0, *SPLIT_BOUNDS), SPLIT_BOUNDS)
        ours = times.pop("0")
        best = min(times, key=times.get)
        yield Point(step.name, ours * 1e6, times[best] * 1e6, f"{best} splits", times[best] / ours)


def over_tokens(runner: Runner) -> Iterator[Point]:
    for batch, keys in ((32, 8192), (8, 32768), (64, 16384)):
        one, four = (BenchStep(f"q={n}", "spec", decodes([keys] * batch, n), Heads(64, 8)) for n in (1, 4))
        ours, reference = runner.time(four), runner.time(one)
        yield Point(f"{batch} x {keys}, 64/8 heads, q=4", ours * 1e6, reference * 1e6, "q=1", reference / ours)


def over_windows(runner: Runner) -> Iterator[Point]:
    for batch in (1, 16, 64):
        long, short = (
            BenchStep(f"window 128 of {keys}", "decode", decodes([keys] * batch), Heads(8, 1), window=128)
            for keys in (131072, 1024)
        )
        # Both read as many bytes of as many copies: there is no room for more of the long cache.
        num_copies = cold_copies(long.kv_bytes, runner.settings.device)
        ours, reference = runner.time(long, num_copies), runner.time(short, num_copies)
        yield Point(f"{batch} x 131072, window 128", ours * 1e6, reference * 1e6, "of 1024", reference / ours)


def over_groups(runner: Runner) -> Iterator[Point]:
    def step(group: int) -> BenchStep:
        return BenchStep(f"group {group}", "decode", decodes([4096] * 128), Heads(2 * group, 2))

    reference = runner.time(step(8))
    for group in (*range(1, 17), 32, 64, 128):
        ours = runner.time(step(group))
        yield Point(f"128 x 4096, {2 * group}/2 heads", ours * 1e6, reference * 1e6, "group of 8", reference / ours)


def over_invariant(runner: Runner) -> Iterator[Point]:
    batches = {
        "1 x 64k": decodes([65536]),
        "16 x 8k": decodes([8192] * 16),
        "128 ragged": decodes(ragged(128, 64, 32768, 2, 3.0)),
        "512 of 16k": ((512, 16384),),
        "2k of 32k": ((2048, 32768),),
    }
    for heads in (Heads(32, 8), Heads(8, 1)):
        for name, lengths in batches.items():
            step = BenchStep(f"{name}, {heads.q}/{heads.kv} heads", "invariant", lengths, heads)
            times = runner.times(step, (1, SPLITS_BOUND), (1,), batch_invariant=True)
            ours = times.pop(str(SPLITS_BOUND))
            best = min(times, key=times.get)
            reference = "whole tiles" if best == "1" else "FA3, 1 split"
            yield Point(step.name, ours * 1e6, times[best] * 1e6, reference, times[best] / ours)


def over_padding(runner: Runner) -> Iterator[Point]:
    short = next(s for s in trace_steps(TRACES[0], 40) if s.total_q == len(s.lengths))
    long = BenchStep("128 x 4096", "padding", decodes([4096] * 128))
    for step in (short, long):
        for padding in (128, 512, 1024, 1920):
            ours, reference = runner.padded_times(step, padding)
            yield Point(f"{step.name}, {padding} rows", ours * 1e6, reference * 1e6, "left alone", reference / ours)


def over_plans(runner: Runner) -> Iterator[Point]:
    batches = {
        "decodes of 1,024 keys": decodes([1024] * 1024),
        "decodes of 16 to 4,096": decodes(ragged(1024, 16, 4097, 6)),
        "1,008 decodes, 16 x 128 of 1,024": decodes([1024] * 1008) + ((128, 1024),) * 16,
        "1,023 decodes, 1,024 of 8,192": (*decodes([1024] * 1023), (1024, 8192)),
        "one decode of 131,072, others of 256": decodes([131072] + [256] * 1023),
        "128 of 1,024: 4,096 tiles": ((128, 1024),) * 1024,
    }
    for name, lengths in batches.items():
        ours = runner.plan_time(BenchStep(name, "plan", lengths))
        yield Point(name, ours * 1e6, PLAN_US, "", PLAN_US * 1e-6 / ours)


SWEEPS = (
    Sweep("splits", over_splits, least=0.90, share=0.95, least_of_all=0.75),
    Sweep("tokens", over_tokens, least=1 / 1.15),
    Sweep("window", over_windows, least=1 / 1.1),
    Sweep("heads", over_groups, least=0.85),
    Sweep("invariant", over_invariant, least=0.85),
    Sweep("padding", over_padding, least=1 / 1.01, digits=4),
    Sweep("plans", over_plans, least=1.0),
)


def main(
    only: Annotated[str, typer.Option(help="Sweeps in whose name a word begins so.")] = "",
    fa3: Annotated[Path | None, typer.Option(help="vLLM's _vllm_fa3_C.abi3.so: its splits are swept too.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every point here.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Of the points over splits, one of so many.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for the replays of a point.")] = 0.2,
    device: Annotated[str, typer.Option(help="cuda, or cpu for a dry run of tiny steps.")] = "cuda",
    seed: Annotated[int, typer.Option(help="Of the inputs; drawn if not given.")] = -1,
) -> None:
    console = open_console("sweep", device, fa3)
    try:
        chosen = named("--only", only, SWEEPS)
    except ValueError as error:
        console.print(f"sweep: {error}", soft_wrap=True)
        raise typer.Exit(2) from None
    seed = seed if seed >= 0 else time.time_ns() % 2**31
    on_gpu = device == "cuda"
    settings = Settings(torch.device(device), seconds if on_gpu else 0.0, True, 0, 0, seed)
    runner = Runner(settings, Fa3(fa3) if fa3 else None, every)
    context = describe(settings, {"bfloat16": measure_rates(settings.device, torch.bfloat16)}, fa3)
    console.print(" | ".join(f"{name}: {value}" for name, value in context.items()), highlight=False)
    found: dict[str, list[Point]] = {}
    for sweep in chosen:
        points, problems_before = [], len(runner.problems)
        found[sweep.name] = points
        for point in track(sweep.run(runner), sweep.name, console=console, transient=True, total=None):
            points.append(point)
            if json_file:  # after each point, so that a run that is cut short leaves what it has
                write_json(json_file, context, found)
        print_points(console, sweep, points, dry=not on_gpu, wrong=len(runner.problems) > problems_before)
    for note in runner.notes:
        console.print(f"[yellow]{note}[/]", highlight=False, soft_wrap=True)
    for problem in runner.problems:
        console.print(f"[red]{problem}[/]", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if runner.problems else 0)


def print_points(console: Console, sweep: Sweep, points: list[Point], dry: bool, wrong: bool) -> None:
    """All points, or the worst of many. wrong: some output was, so that there is no verdict."""
    shown = sorted(points, key=lambda p: p.quality)[:20] if len(points) > 40 else points
    table = Table(title=f"{sweep.name}: dry run, no times are claimed" if dry else sweep.name)
    for name in ("step", "us", "reference us", "reference", "quality"):
        table.add_column(name, justify="left" if name in ("step", "reference") else "right")
    for p in shown:
        table.add_row(p.name, f"{p.us:.1f}", f"{p.reference_us:.1f}", p.reference, sweep.text(p.quality))
    console.print(table)
    mean = math.exp(statistics.fmean(math.log(p.quality) for p in points))
    verdict = "; outputs were wrong, see below" if wrong else "" if dry else f"; {sweep.verdict(points)}"
    console.print(f"{sweep.name}: mean {sweep.text(mean)}{verdict}", highlight=False)


def write_json(path: Path, context: dict[str, str], found: dict[str, list[Point]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sweeps = {name: [asdict(p) for p in points] for name, points in found.items()}
    path.write_text(json.dumps({"context": context, "sweeps": sweeps}, indent=1))


if __name__ == "__main__":
    typer.run(main)
