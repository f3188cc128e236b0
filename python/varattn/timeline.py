"""What ran where and when in one attention call, as its trace buffer tells, beside what the plan foresaw.

    buffer = timeline.trace_buffer(num_records, device)
    varattn.mha_varlen(..., plan=plan, trace=buffer)
    actual = timeline.read(buffer)
    timeline.write_chrome("trace.json", plan, actual)      # chrome://tracing, ui.perfetto.dev
    timeline.draw("trace.png", plan, actual)

Buffers are laid out as csrc/include/varattn/trace.h says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from varattn.picture import Bars, Schedule, draw_bars, item_kinds, simulate_queue
from varattn.planner import Plan

KINDS = ("task", "load", "merge")  # TraceKind
TASK = 0

_HEADER_WORDS = _RECORD_WORDS = 4
# Two 64-bit words hold pairs, the second of each in the low half.
RECORD_DTYPE = np.dtype(
    [
        ("kv_head", np.uint32),
        ("item", np.uint32),
        ("kind", np.uint32),
        ("sm", np.uint32),
        ("begin_ns", np.uint64),
        ("end_ns", np.uint64),
    ]
)


def trace_buffer(num_records: int, device: torch.device | str) -> torch.Tensor:
    """A buffer for so many records: 3 x work items x KV heads are always enough. A buffer serves one call."""
    if num_records < 0:
        raise ValueError(f"trace_buffer: num_records: got {num_records}; takes 0 or more")
    return torch.zeros(_HEADER_WORDS + _RECORD_WORDS * num_records, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Timeline:
    records: np.ndarray  # of RECORD_DTYPE, by their begin; times count from the first begin
    num_dropped: int  # records for which the buffer had no room

    @property
    def tasks(self) -> np.ndarray:
        """One record for each (work item, KV head)."""
        return self.records[self.records["kind"] == TASK]

    @property
    def nanoseconds(self) -> int:
        """From the first begin to the last end."""
        return int(self.records["end_ns"].max()) if len(self.records) else 0


def read(buffer: torch.Tensor) -> Timeline:
    """What a call wrote into its trace buffer. Synchronises."""
    words = buffer.cpu().numpy()
    count, capacity = int(words[0]), (len(words) - _HEADER_WORDS) // _RECORD_WORDS
    kept = min(count, capacity)
    records = np.frombuffer(words[_HEADER_WORDS:].tobytes(), RECORD_DTYPE, kept).copy()
    records = records[np.argsort(records["begin_ns"], kind="stable")]
    if kept:
        first = records["begin_ns"][0]
        records["begin_ns"] -= first
        records["end_ns"] -= first
    return Timeline(records, count - kept)


@dataclass(frozen=True)
class _Planned:
    """A plan and the schedule that its costs foresee."""

    items: np.ndarray
    num_heads_kv: int
    schedule: Schedule

    @staticmethod
    def of(plan: Plan) -> _Planned:
        header, items = plan.header(), plan.items()
        return _Planned(items, int(header["config"]["num_heads_kv"]), simulate_queue(header, items["cost"]))


def write_chrome(path: str | Path, plan: Plan, actual: Timeline, max_decode_tokens: int = 1) -> None:
    """Writes Chrome's trace format: process 1 is what ran, a thread for each SM; process 2 what the plan foresaw, a
    thread for each CTA."""
    planned = _Planned.of(plan)
    kinds = item_kinds(planned.items, max_decode_tokens)
    fields = ("seq", "q_len", "kv_len", "block_begin", "block_end", "split", "num_splits", "cost")

    def event(process: int, row: int, item: int, head: int, begin: float, end: float, kind: str) -> dict:
        about = planned.items[item]
        name = f"seq {int(about['seq'])}, {kinds[item]}" + ("" if kind == KINDS[TASK] else f": {kind}")
        args = {"item": item, "kv_head": head} | {f: int(about[f]) for f in fields}
        times = {"ts": begin / 1000, "dur": (end - begin) / 1000}  # in us, as the format has it
        return {"ph": "X", "pid": process, "tid": row, "name": name, "cat": kind, "args": args} | times

    events = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "ran, by SM"}},
        {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "planned, by CTA"}},
    ]
    for r in actual.records:
        place = (int(r["sm"]), int(r["item"]), int(r["kv_head"]))
        events.append(event(1, *place, int(r["begin_ns"]), int(r["end_ns"]), KINDS[r["kind"]]))
    s = planned.schedule
    for task, cta, begin, end in zip(s.task.tolist(), s.cta.tolist(), s.start.tolist(), s.end.tolist(), strict=True):
        item, head = divmod(task, planned.num_heads_kv)
        events.append(event(2, cta, item, head, begin, end, KINDS[TASK]))
    other = {"dropped_records": actual.num_dropped}
    Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns", "otherData": other}))


def draw(path: str | Path, plan: Plan, actual: Timeline, title: str = "", max_decode_tokens: int = 1) -> int:
    """Writes a PNG: what ran, by SM, above what the plan foresaw, by CTA.

    Returns the planned time of the whole, in ns.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    planned = _Planned.of(plan)
    kinds = item_kinds(planned.items, max_decode_tokens)
    s, tasks = planned.schedule, actual.tasks
    panels = [
        ("ran, by SM (CPU: thread)", Bars(tasks["sm"], tasks["begin_ns"], tasks["end_ns"], kinds[tasks["item"]])),
        ("planned, by CTA", Bars(s.cta, s.start, s.end, kinds[s.task // planned.num_heads_kv])),
    ]
    rows = [int(bars.row.max()) + 1 if len(bars.row) else 1 for _, bars in panels]
    height = 2.5 + sum(0.045 * max(r, 30) for r in rows)
    figure = Figure(figsize=(12, min(18.0, height)), layout="constrained")
    FigureCanvasAgg(figure)
    ends = [max(actual.nanoseconds, 1), max(s.makespan, 1)]
    if max(ends) < 3 * min(ends):  # else (a CPU: costs are of a GPU) either would be a line at the left
        ends = [max(ends)] * 2
    axes = figure.subplots(2, 1)
    for axis, (name, bars), num_rows, end in zip(axes, panels, rows, ends, strict=True):
        legend = draw_bars(axis, bars, num_rows)
        last = int(bars.end.max()) if len(bars.end) else 0
        busy = float((bars.end - bars.begin).sum()) / (num_rows * last) if last else 1.0
        axis.axvline(last / 1000, color="#b02a2a", linewidth=1, linestyle=":")
        axis.set_ylabel(name)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.set_title(f"{last / 1000:.1f} us, rows busy {busy:.0%} of it", fontsize=10)
        axis.set_xlim(0, end / 1000 * 1.02)
        if legend:
            axis.legend(handles=legend, loc="upper right", fontsize=8)
    axes[1].set_xlabel("us")
    dropped = f" ({actual.num_dropped} records dropped)" if actual.num_dropped else ""
    figure.suptitle(title + dropped, fontsize=11)
    figure.savefig(path, dpi=130)
    return s.makespan
