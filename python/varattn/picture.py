"""A picture of a plan: which CTA does which work item, over planned cost.

The queue is simulated as the attention kernel runs it: CTAs pop one (item, KV head) at a time, `num_front_ctas` of them
from the front of the list and the others from the back, until the two ends meet. Planned costs stand in for time.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FLAG_DECODE = 1  # kItemDecode
HOPPER_KERNELS = (1, 2, 3)  # of KernelId, csrc/core/kernel_table.h

COLOURS = {
    "prefill": "#3b6fb6",
    "prefill, split": "#86aede",
    "decode": "#e08a1e",
    "decode, split": "#f3c27c",
}


@dataclass(frozen=True)
class Schedule:
    """Tasks in the order they were popped. Task t is item t // num_heads_kv for KV head t % num_heads_kv."""

    task: np.ndarray
    cta: np.ndarray
    start: np.ndarray  # in units of planned cost (about ns)
    cost: np.ndarray
    num_ctas: int

    @property
    def end(self) -> np.ndarray:
        return self.start + self.cost

    @property
    def makespan(self) -> int:
        return int(self.end.max()) if len(self.task) else 0

    @property
    def balance(self) -> float:
        """Mean load of a CTA over the longest: 1 when all finish together."""
        return float(self.cost.sum()) / (self.num_ctas * self.makespan) if self.makespan else 1.0


def queue_order(header: np.void) -> np.ndarray:
    """The tasks of a plan of this header from the front of the queue to its back, numbered as in Schedule.

    The KV heads of an item are neighbours; but the Hopper engine runs prefills in sections of some heads each.
    """
    heads, front = int(header["config"]["num_heads_kv"]), int(header["num_front_items"])
    section = int(header["section_heads"]) if header["config"]["kernel"] in HOPPER_KERNELS else heads
    tasks = np.arange(int(header["num_items"]) * heads).reshape(-1, heads)
    prefills = [tasks[:front, first : first + section].ravel() for first in range(0, heads, section)]
    return np.concatenate([*prefills, tasks[front:].ravel()])


def simulate_queue(header: np.void, costs: np.ndarray) -> Schedule:
    """Runs the two-ended queue of a plan of this header over items of these costs."""
    costs, order = np.asarray(costs, dtype=np.int64), queue_order(header).tolist()
    heads, num_ctas = int(header["config"]["num_heads_kv"]), int(header["config"]["num_ctas"])
    num_front_ctas = int(header["num_front_ctas"])
    task, cta, start = (np.zeros(len(order), dtype=np.int64) for _ in range(3))
    idle = [(0, index) for index in range(num_ctas)]  # (time, CTA): a heap from the beginning
    front = back = 0
    for pop in range(len(order)):
        time, index = idle[0]
        if index < num_front_ctas:
            next_task = order[front]
            front += 1
        else:
            back += 1
            next_task = order[-back]
        task[pop], cta[pop], start[pop] = next_task, index, time
        heapq.heapreplace(idle, (time + int(costs[next_task // heads]), index))
    return Schedule(task, cta, start, costs[task // heads], num_ctas)


def item_kinds(items: np.ndarray, max_decode_tokens: int = 1) -> np.ndarray:
    """A key of COLOURS for each item.

    Kernels without a decode mode run decodes as small prefill tiles, so a sequence of at most `max_decode_tokens` query
    tokens counts as a decode too.
    """
    decode = ((items["flags"] & FLAG_DECODE) != 0) | (items["q_len"] <= max_decode_tokens)
    split = items["num_splits"] > 1
    names = np.array(["prefill", "prefill, split", "decode", "decode, split"])
    return names[2 * decode.astype(int) + split.astype(int)]


@dataclass(frozen=True)
class Bars:
    """Bars of a picture: each lies in a row, from begin to end (ns), in the colour of its kind."""

    row: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    kind: np.ndarray  # keys of COLOURS


def draw_bars(axes, bars: Bars, num_rows: int) -> list:
    """Draws bars over us, the first row on top. Returns the handles of a legend."""
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    left, right = bars.begin / 1000, bars.end / 1000
    low, high = bars.row - 0.45, bars.row + 0.45
    corners = np.stack([left, low, left, high, right, high, right, low], axis=1).reshape(-1, 4, 2)
    cost = (bars.end - bars.begin).astype(float)
    legend = []
    for kind, colour in COLOURS.items():
        chosen = bars.kind == kind
        if not chosen.any():
            continue
        axes.add_collection(PolyCollection(corners[chosen], facecolors=colour, edgecolors="white", linewidths=0.25))
        share = cost[chosen].sum() / max(1.0, cost.sum())
        legend.append(Patch(color=colour, label=f"{kind}: {int(chosen.sum())} tasks, {share:.0%} of the cost"))
    axes.set_ylim(num_rows - 0.5, -0.5)
    return legend


def draw_schedule(
    path: str | Path,
    header: np.void,
    items: np.ndarray,
    title: str = "",
    max_decode_tokens: int = 1,
) -> Schedule:
    """Writes a PNG of a plan (Plan.header(), Plan.items()): a row for each CTA, a bar for each (item, KV head).

    Returns the simulated schedule.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    schedule = simulate_queue(header, items["cost"])
    num_ctas, num_front_ctas = schedule.num_ctas, int(header["num_front_ctas"])
    kinds = item_kinds(items, max_decode_tokens)[schedule.task // int(header["config"]["num_heads_kv"])]

    figure = Figure(figsize=(12, min(14.0, 2.2 + 0.055 * max(num_ctas, 40))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    legend = draw_bars(axes, Bars(schedule.cta, schedule.start, schedule.end, kinds), num_ctas)
    if 0 < num_front_ctas < num_ctas:
        axes.axhline(num_front_ctas - 0.5, color="black", linewidth=0.8, linestyle="--")
    mean_load = schedule.cost.sum() / max(1, num_ctas) / 1000
    axes.axvline(mean_load, color="#b02a2a", linewidth=1, linestyle=":")
    axes.set_xlim(0, max(schedule.makespan / 1000, 1e-3) * 1.02)
    axes.set_xlabel(f"planned cost (about us); dotted: the mean load of a CTA, {mean_load:.1f}")
    axes.set_ylabel("CTA, or worker of a CPU (those that start at the front first)")
    axes.set_title(f"{title}\nbalance {schedule.balance:.0%}: mean load over the longest".strip(), fontsize=11)
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
    return schedule
