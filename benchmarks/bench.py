"""Measures varattn on fixed steps: `python benchmarks/bench.py --help`. trace_bench.py takes those of real traces.

Each step's output is checked against float64 before it is timed. With --fa3, FlashAttention-3 runs beside it on the
same inputs. `--device cpu` is a dry run of tiny steps: it exercises this program and claims no times.
"""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import varattn

from inputs import StepInputs
from peers import TWO_LAUNCHES, Fa3
from report import plot, print_table
from steps import BenchStep, fixed_steps
from targets import OUR_PLAN, is_measured, misses, target_of
from timing import Timing, captured, measure_rates, time_alternating

OURS, FA3_PLAN = "varattn", "FA3 plan alone"


@dataclass
class Row:
    """What was measured of a step. Times in seconds."""

    step: BenchStep
    floor: float
    num_sms: int  # that both sides may use
    times: dict[str, Timing] = field(default_factory=dict)
    error: float = float("nan")  # worst sampled row of ours, relative
    problem: str = ""  # a wrong result, or why ours did not run
    notes: list[str] = field(default_factory=list)  # on FA3

    @property
    def ours(self) -> Timing | None:
        return self.times.get(OURS)

    @property
    def fa3(self) -> Timing | None:
        ways = [t for name, t in self.times.items() if name.startswith("FA3") and name != FA3_PLAN]
        return min(ways, key=lambda t: t.median) if ways else None

    @property
    def ratio(self) -> float | None:
        return self.fa3.median / self.ours.median if self.fa3 and self.ours else None

    @property
    def ratio_in_two(self) -> float | None:
        """Of FA3's best time for prefills and decodes in two launches."""
        ways = [t.median for name, t in self.times.items() if name.startswith(TWO_LAUNCHES)]
        return min(ways) / self.ours.median if ways and self.ours else None

    def as_json(self) -> dict:
        out = asdict(self.step) | {"title": self.step.title, "lengths": self.step.lengths}
        out |= {"flops": self.step.flops, "bytes": self.step.bytes, "floor": self.floor}
        out |= {"error": self.error if math.isfinite(self.error) else None}
        out |= {"times": {name: asdict(t) for name, t in self.times.items()}}
        return out | {
            "ratio_to_fa3": self.ratio,
            "ratio_in_two_launches": self.ratio_in_two,
            "problem": self.problem,
            "notes": self.notes,
        }


@dataclass(frozen=True)
class Settings:
    device: torch.device
    seconds: float
    kernel_only: bool
    sm_margin: int
    num_splits: int
    seed: int
    batch_invariant: bool = False

    def sm_margin_of(self, step: BenchStep) -> int:
        return self.sm_margin if step.sms is None else max(0, num_sms(self.device) - step.sms)


class OurCalls:
    """varattn with every buffer made beforehand: the plan once, then one launch a call.

    padding: rows of q past the step's, whose outputs become 0 unless leave_padding.
    """

    def __init__(self, x: StepInputs, settings: Settings, padding: int = 0, leave_padding: bool = False):
        heads, sm_margin = x.step.heads, settings.sm_margin_of(x.step)
        window = (-1, -1) if x.step.window is None else (x.step.window, -1)
        arguments = dict(
            num_heads_q=heads.q,
            num_heads_kv=heads.kv,
            head_dim=heads.dim,
            dtype=x.dtype,
            causal=x.step.causal,
            window_size=window,
            num_splits=settings.num_splits,
            batch_invariant=settings.batch_invariant,
            sm_margin=sm_margin,
        )
        keys = dict(seqused_k=x.seqused_k) if x.step.page_size else dict(cu_seqlens_k=x.cu_seqlens_k)
        q = torch.cat([x.q, torch.zeros_like(x.q[:1]).expand(padding, -1, -1)]) if padding else x.q
        capacity = dict(max_seqs=len(x.step.lengths), max_total_q=len(q), device=x.device)
        buffer = torch.zeros(varattn.plan_size(**capacity, **arguments), dtype=torch.uint8, device=x.device)
        workspace_bytes = varattn.workspace_size(**capacity, **arguments)
        workspace = torch.zeros(workspace_bytes, dtype=torch.uint8, device=x.device)
        self.out = torch.full_like(q, torch.nan)

        def make_plan(_: int = 0) -> varattn.Plan:
            return varattn.plan(x.cu_seqlens_q, max_total_q=len(q), out=buffer, **keys, **arguments)

        plan = make_plan()

        def attend(copy: int, trace: torch.Tensor | None = None) -> None:
            varattn.mha_varlen(
                q,
                *x.caches[copy],
                x.cu_seqlens_q,
                block_table=x.block_table,
                plan=plan,
                workspace=workspace,
                causal=x.step.causal,
                window_size=window,
                num_splits=settings.num_splits,
                batch_invariant=settings.batch_invariant,
                sm_margin=sm_margin,
                leave_padding=leave_padding,
                out=self.out,
                trace=trace,
                **keys,
            )

        self.make_plan, self.attend, self.plan = make_plan, attend, plan


def measure(step: BenchStep, rates: tuple[float, float], fa3: Fa3 | None, settings: Settings) -> Row:
    sm_margin = settings.sm_margin_of(step)
    row = Row(step, max(step.flops / rates[0], step.bytes / rates[1]), num_sms(settings.device) - sm_margin)
    x = StepInputs(step, settings.device, settings.seed)
    num_copies = len(x.caches)
    calls: dict[str, object] = {}
    try:
        ours = OurCalls(x, settings)
        ours.attend(0)
        row.error, row.problem = x.check(ours.out)
        varattn.check(ours.plan)
        if not row.problem:
            calls[OURS] = captured(ours.attend, num_copies, settings.device)
        if not row.problem and not settings.kernel_only:
            calls[OUR_PLAN] = captured(ours.make_plan, 1, settings.device)
    except (ValueError, RuntimeError) as error:
        if "CUDA error" in str(error):
            raise  # nothing after it can be trusted
        row.problem = f"not run: {error}"
    if fa3 is not None:
        out = torch.full_like(x.q, torch.nan)
        in_two = fa3.two_launches(x, out) if step.kind == "mixed" else {}
        for name, make in (fa3.ways(x, out, sm_margin) | in_two).items():
            try:
                call = make()
                out.fill_(torch.nan)
                call(0)
                wrong = x.check(out)[1]
                if wrong:
                    row.notes.append(f"{name}: wrong: {wrong}")
                else:
                    calls[name] = captured(call, num_copies, settings.device)
            except RuntimeError as error:
                if "CUDA error" in str(error):
                    raise
                row.notes.append(f"{name}: not run: {error}")
        if not settings.kernel_only and "FA3 plan" in calls:
            calls[FA3_PLAN] = captured(lambda _: fa3.plan(x, 0, sm_margin), 1, settings.device)
    row.times = time_alternating(calls, settings.seconds)
    return row


def main(
    cases: Annotated[str, typer.Option(help="Run only steps whose title or kind matches this expression.")] = "",
    fa3: Annotated[Path | None, typer.Option(help="vLLM's _vllm_fa3_C.abi3.so, to compare with.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Write a PNG here.")] = None,
    kernel_only: Annotated[bool, typer.Option("--kernel-only", help="Time the attention alone, no planners.")] = False,
    sm_margin: Annotated[int, typer.Option(min=0, help="SMs left free, for both sides.")] = 0,
    num_splits: Annotated[int, typer.Option(min=0, help="Our bound on splits of a tile; 0: the default.")] = 0,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, or float32 on a CPU.")] = "bfloat16",
    fp16: Annotated[bool, typer.Option("--fp16", help="Every step in float16 too, beside bfloat16.")] = False,
    seconds: Annotated[float, typer.Option(help="Time for the replays of a step.")] = 1.0,
    device: Annotated[str, typer.Option(help="cuda, or cpu for a dry run of tiny steps.")] = "cuda",
    seed: Annotated[int, typer.Option(help="Of the inputs; drawn if not given.")] = -1,
) -> None:
    console = open_console("bench", device, fa3, width=200)
    seed = seed if seed >= 0 else time.time_ns() % 2**31
    settings = Settings(torch.device(device), seconds, kernel_only, sm_margin, num_splits, seed)

    chosen = [s for s in fixed_steps() if re.search(cases, f"{s.title} {s.kind}")]
    if not chosen:
        console.print(f"bench: --cases: no step matches {cases!r}")
        raise typer.Exit(2)
    dtypes = [dtype, "float16"] if fp16 and dtype != "float16" else [dtype]
    chosen = [replace(s, dtype=d) for s in chosen for d in dtypes]
    if device == "cpu":
        chosen = [s.shrunk() for s in chosen]
        settings = Settings(settings.device, 0.0, kernel_only, sm_margin, num_splits, seed)

    peer = Fa3(fa3) if fa3 is not None else None
    rates = {d: measure_rates(settings.device, getattr(torch, d)) for d in dtypes}
    context = describe(settings, rates, fa3)
    console.print(" | ".join(f"{name}: {value}" for name, value in context.items()), highlight=False)
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for step in chosen:
            progress.update(task, description=step.title)
            rows.append(measure(step, rates[step.dtype], peer, settings))
            if json_file:  # after each step, so that a run that is cut short leaves what it has
                write_json(json_file, context, rows)
            progress.advance(task)
    by_title = {r.step.title: r for r in rows}
    held = [r for r in rows if device == "cuda" and sm_margin == 0 and is_measured(r, by_title)]
    missed = {r.step.title: misses(r, by_title, context["device"], rates[dtype][1]) for r in held}
    missed = {title: words for title, words in missed.items() if words}
    verdicts = {r.step.title: f"{target_of(r).text} {'MISSED' if r.step.title in missed else 'met'}" for r in held}
    print_table(console, rows, dry=device == "cpu", verdicts=verdicts)
    if plot_file:
        plot_file.parent.mkdir(parents=True, exist_ok=True)
        plot(plot_file, rows, context)
    for r in rows:
        if r.ratio_in_two:
            words = f"FA3 in two launches, of prefills and of decodes, takes {r.ratio_in_two:.2f} times as long"
            console.print(f"{r.step.title}: {words}", highlight=False, soft_wrap=True)
        for note in r.notes:
            console.print(f"[yellow]{r.step.title}[/]: {escape(note)}", highlight=False, soft_wrap=True)
    if held:
        console.print(f"{len(held) - len(missed)} of {len(held)} targets met", highlight=False)
    for title, words in missed.items():
        console.print(f"[yellow]{title}[/]: {', '.join(words)}", highlight=False, soft_wrap=True)
    wrong = [r for r in rows if r.problem]
    for r in wrong:
        console.print(f"[red]{r.step.title}[/]: {escape(r.problem)}", highlight=False, soft_wrap=True)
    console.print(f"{len(rows) - len(wrong)} of {len(rows)} steps ran and were right", highlight=False)
    raise typer.Exit(1 if wrong else 0)


def open_console(program: str, device: str, fa3: Path | None = None, width: int = 160) -> Console:
    """Ends the program with a message if the device, or the library on it, is not there."""
    console = Console(width=None if Console().is_terminal else width)
    if device == "cuda" and not torch.cuda.is_available():
        console.print(f"{program}: no GPU here; `--device cpu` makes a dry run of tiny steps")
        raise typer.Exit(2)
    if fa3 is not None and (device != "cuda" or not fa3.is_file()):
        console.print(f"{program}: --fa3: {fa3}: {'no such file' if device == 'cuda' else 'takes --device cuda'}")
        raise typer.Exit(2)
    return console


def write_json(path: Path, context: dict[str, str], rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"context": context, "steps": [r.as_json() for r in rows]}, indent=1))


def describe(settings: Settings, rates: dict[str, tuple[float, float]], fa3: Path | None) -> dict[str, str]:
    """`rates`: of measure_rates, by dtype."""
    on_gpu = settings.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()}), dry run",
        "SMs": str(num_sms(settings.device)) if on_gpu else "-",
        "matmul": ", ".join(f"{matmul / 1e12:.1f} TFLOP/s ({dtype})" for dtype, (matmul, _) in rates.items()),
        "copy": f"{max(copy for _, copy in rates.values()) / 1e9:.0f} GB/s",
        "varattn": f"{varattn.__version__} ({commit()})",
        "torch": torch.__version__,
        "FA3": fa3.name if fa3 else "not given",
        "sm_margin": str(settings.sm_margin),
        "seed": str(settings.seed),
    }


def num_sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


if __name__ == "__main__":
    typer.run(main)
