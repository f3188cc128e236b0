"""The table and the plot of a benchmark run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table


def print_table(console: Console, rows: list, *, dry: bool, verdicts: dict[str, str]) -> None:
    """A line for each step. verdicts: by title, what it is held to, and whether it is met."""
    has_fa3 = any(r.fa3 for r in rows)
    has_plans = any("plan" in name and not name.startswith("FA3 plan ") for r in rows for name in r.times)
    table = Table(
        title="Dry run of tiny steps: no times are claimed" if dry else "Time of one call, cold L2",
        caption="floor: max(FLOPs / matmul rate, bytes / copy rate); share: floor / median; ratio: best of FA3 / ours",
    )
    table.add_column("step", no_wrap=True)
    names = ["floor us", "us", "spread", "TFLOP/s", "GB/s", "share"]
    has_sms = any(r.step.sms for r in rows)
    names += ["GB/s per SM"] if has_sms else []
    names += ["plan us"] if has_plans else []
    names += ["FA3 us", "best way", "FA3 share", "ratio"] if has_fa3 else []
    names += ["target"] if verdicts else []
    for name in [*names, "error"]:
        table.add_column(name, justify="right")
    for r in rows:
        cells = _cells(r, has_fa3, has_plans, has_sms)
        cells += [verdicts.get(r.step.title, "")] if verdicts else []
        missed = "MISSED" in verdicts.get(r.step.title, "")
        style = "red" if r.problem else "yellow" if missed else None
        table.add_row(r.step.title, *cells, f"{r.error:.1e}", style=style)
    console.print(table)


def _cells(r, has_fa3: bool, has_plans: bool, has_sms: bool) -> list[str]:
    cells = [f"{r.floor * 1e6:.1f}"]
    if r.ours:
        t = r.ours.median
        cells += [f"{t * 1e6:.1f}", f"{r.ours.spread:.1%}", f"{r.step.flops / t / 1e12:.1f}"]
        cells += [f"{r.step.bytes / t / 1e9:.0f}", f"{r.floor / t:.0%}"]
        cells += [f"{r.step.bytes / t / 1e9 / r.num_sms:.1f}"] if has_sms else []
    else:
        cells += ["-"] * (5 + has_sms)
    if has_plans:
        plan = r.times.get("varattn plan")
        cells.append(f"{plan.median * 1e6:.1f}" if plan else "-")
    if has_fa3 and r.fa3:
        way = next(name for name, t in r.times.items() if t is r.fa3)
        cells += [f"{r.fa3.median * 1e6:.1f}", way, f"{r.floor / r.fa3.median:.0%}"]
        cells.append(f"{r.ratio:.2f}" if r.ratio else "-")
    elif has_fa3:
        cells += ["-"] * 4
    return cells


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
