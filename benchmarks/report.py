"""The table and the plot of a benchmark run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from steps import TRACES


def print_table(console: Console, rows: list, *, dry: bool, sm_margin: int) -> None:
    """A line for each step, and one for each trace with the sums over its steps."""
    has_fa3 = any(r.fa3 for r in rows)
    has_plans = any("plan" in name and not name.startswith("FA3 plan ") for r in rows for name in r.times)
    table = Table(
        title="Dry run of tiny steps: no times are claimed" if dry else "Time of one call, cold L2",
        caption="floor: max(FLOPs / matmul rate, bytes / copy rate); share: floor / median; ratio: best of FA3 / ours",
    )
    table.add_column("step", no_wrap=True)
    names = ["floor us", "us", "spread", "TFLOP/s", "GB/s", "share"]
    names += ["GB/s per SM"] if sm_margin else []
    names += ["plan us"] if has_plans else []
    names += ["FA3 us", "best way", "FA3 share", "ratio"] if has_fa3 else []
    for name in [*names, "error"]:
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(r.step.title, *_cells(r, has_fa3, has_plans, sm_margin), style="red" if r.problem else None)
    sums = [s for s in (_trace_sum(t.name, rows) for t in TRACES) if s]
    if sums:
        table.add_section()
    for name, count, floor, ours, fa3 in sums:
        cells = [f"{floor * 1e6:.0f}", f"{ours * 1e6:.0f}", "", "", "", f"{floor / ours:.0%}"]
        cells += [""] * (bool(sm_margin) + has_plans)
        cells += [f"{fa3 * 1e6:.0f}", "", f"{floor / fa3:.0%}", f"{fa3 / ours:.2f}"] if fa3 else [""] * 4 * has_fa3
        table.add_row(f"{name}: sum of {count}", *cells, "", style="bold")
    console.print(table)


def _cells(r, has_fa3: bool, has_plans: bool, sm_margin: int) -> list[str]:
    cells = [f"{r.floor * 1e6:.1f}"]
    if r.ours:
        t = r.ours.median
        cells += [f"{t * 1e6:.1f}", f"{r.ours.spread:.1%}", f"{r.step.flops / t / 1e12:.1f}"]
        cells += [f"{r.step.bytes / t / 1e9:.0f}", f"{r.floor / t:.0%}"]
        cells += [f"{r.step.bytes / t / 1e9 / r.num_sms:.1f}"] if sm_margin else []
    else:
        cells += ["-"] * (5 + bool(sm_margin))
    if has_plans:
        plan = r.times.get("varattn plan")
        cells.append(f"{plan.median * 1e6:.1f}" if plan else "-")
    if has_fa3 and r.fa3:
        way = next(name for name, t in r.times.items() if t is r.fa3)
        cells += [f"{r.fa3.median * 1e6:.1f}", way, f"{r.floor / r.fa3.median:.0%}"]
        cells.append(f"{r.ratio:.2f}" if r.ratio else "-")
    elif has_fa3:
        cells += ["-"] * 4
    return [*cells, f"{r.error:.1e}"]


def _trace_sum(name: str, rows: list) -> tuple[str, int, float, float, float | None] | None:
    """Sums over the steps of a trace, in seconds."""
    steps = [r for r in rows if r.step.kind == name and r.ours]
    if not steps:
        return None
    fa3 = sum(r.fa3.median for r in steps) if all(r.fa3 for r in steps) else None
    return name, len(steps), sum(r.floor for r in steps), sum(r.ours.median for r in steps), fa3


def plot(path: Path, rows: list, context: dict[str, str]) -> None:
    """Bars: the share of the floor that each step reaches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [r for r in rows if r.ours]
    figure = Figure(figsize=(11, 1.8 + 0.27 * max(1, len(shown))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bars = [("varattn", "#3b6fb6", lambda r: r.ours), ("FA3, its best way", "#b9b9b9", lambda r: r.fa3)]
    bars = [b for b in bars if any(b[2](r) for r in shown)]
    height = 0.8 / max(1, len(bars))
    for index, (label, colour, pick) in enumerate(bars):
        places = [i + (index - (len(bars) - 1) / 2) * height for i in range(len(shown))]
        shares = [r.floor / pick(r).median if pick(r) else 0 for r in shown]
        axes.barh(places, shares, height=height, color=colour, label=label)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [r.step.title for r in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("share of the floor: max(FLOPs / matmul rate, bytes / copy rate) over the measured time")
    axes.set_title(f"{context['device']}, varattn {context['varattn']}", fontsize=10)
    if shown:
        axes.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=130)
