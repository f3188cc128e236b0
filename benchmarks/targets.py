"""What each step is held to, on one H200 or H100 beside FlashAttention-3: see docs/performance.md."""

from __future__ import annotations

from dataclasses import dataclass, replace

OUR_PLAN = "varattn plan"  # a row's time of our planner


@dataclass(frozen=True)
class Target:
    ratio: float | None = None  # FA3's best time over ours, at least
    share: float | None = None  # of the floor, at least
    of_packed: float | None = None  # our time on packed K/V over ours on these pages, at least
    of_bfloat16: float | None = None  # our time in bfloat16 over ours, at least
    gb_per_s_per_sm: float | None = None  # on an H200, at least; on other GPUs 85% of the copy rate
    plan_us: float | None = None  # of our planner, at most

    @property
    def text(self) -> str:
        parts = [
            (self.ratio, lambda x: f"{x:.2f}"),
            (self.share, lambda x: f"{x:.0%} of floor"),
            (self.of_packed, lambda x: f"{x:.2f} of packed"),
            (self.of_bfloat16, lambda x: f"{x:.2f} of bf16"),
            (self.gb_per_s_per_sm, lambda x: f"{x:.0f} GB/s/SM"),
            (self.plan_us, lambda x: f"plan {x:.0f} us"),
        ]
        return ", ".join(show(x) for x, show in parts if x is not None)


_PREFILL = {
    "prefill 1x16k causal": (1.00, 1.05),
    "prefill 4x4k causal": (1.05, 1.08),
    "prefill 16x1k causal": (1.20, 1.20),
    "prefill ragged 32 causal": (1.20, 1.20),
}
_PAGED = {
    "decode b1 k64k": Target(1.03),
    "decode b16 k8k": Target(1.00),
    "decode b128 k4k": Target(1.00),
    "decode b1024 k1k": Target(1.00, plan_us=5),
    "decode ragged b128": Target(1.03),
    "decode ragged b128 tp8": Target(1.20),
    "spec q4 b32 ragged": Target(1.10),
    "decode b128 k4k on 48 SMs": Target(gb_per_s_per_sm=78),
    "mixed 2k chunk + 63 decode": Target(1.50, share=0.85),
    "mixed qwen7b 128dec + 4x1k": Target(1.30),
    "mixed 2x2k + 128 dec 4k": Target(1.15, share=0.92),
    "mixed 1 long decode + 31 short prefill": Target(1.25),
}

# By title of the step.
TARGETS: dict[str, Target] = {
    **{f"{name}, packed": Target(packed) for name, (packed, _) in _PREFILL.items()},
    **{f"{name}, p16": Target(paged, of_packed=0.97) for name, (_, paged) in _PREFILL.items()},
    "chunk 2k of 32k, packed": Target(1.00),
    "chunk 2k of 32k, p16": Target(1.08),
    "prefill 1x16k full, packed": Target(1.00),
    "prefill 4x4k causal d64, packed": Target(1.05),
    "prefill 4x4k causal d256, packed": Target(1.00),
    **{f"{name}, p{page_size}": target for name, target in _PAGED.items() for page_size in (16, 128)},
    "skew 1x128k + 999x256, p16": Target(2.7),
}
FP16 = Target(of_bfloat16=0.98)


def misses(row, rows: dict[str, object], device: str, copy_rate: float) -> list[str]:
    """What a row falls short of, in words; [] if of nothing, or nothing can be said. `rows` are all, by title."""
    target = target_of(row)
    if target is None or row.ours is None:
        return []
    ours = row.ours.median

    def over(title: str) -> float | None:
        other = rows.get(title)
        return other.ours.median / ours if other and other.ours else None

    rate = row.step.bytes / ours
    least_rate = 0.0
    if target.gb_per_s_per_sm is not None:
        least_rate = target.gb_per_s_per_sm * 1e9 * row.num_sms if "H200" in device else 0.85 * copy_rate
    found = [
        ("ratio", row.ratio, target.ratio),
        ("share of the floor", row.floor / ours, target.share),
        ("share of packed", over(row.step.title_for(page_size=0)), target.of_packed),
        ("share of bfloat16", over(row.step.title_for(dtype="bfloat16")), target.of_bfloat16),
        ("GB/s per SM", rate / 1e9 / row.num_sms, least_rate / 1e9 / row.num_sms if least_rate else None),
    ]
    # Rounded as the table shows it.
    missed = [
        f"{name} {got:.2f} < {least:.2f}"
        for name, got, least in found
        if got is not None and least is not None and round(got, 2) < round(least, 2)
    ]
    if target.plan_us is not None and round(row.times[OUR_PLAN].median * 1e6, 1) > target.plan_us:
        missed.append(f"plan {row.times[OUR_PLAN].median * 1e6:.1f} us > {target.plan_us:.1f} us")
    return missed


def is_measured(row, rows: dict[str, object]) -> bool:
    """Whether all that a row's target compares with was measured too."""
    target = target_of(row)
    if target is None or row.ours is None:
        return False
    others = [row.step.title_for(page_size=0)] * (target.of_packed is not None)
    others += [row.step.title_for(dtype="bfloat16")] * (target.of_bfloat16 is not None)
    has_ratio = target.ratio is None or row.ratio is not None
    return has_ratio and all(title in rows and rows[title].ours for title in others)


def target_of(row) -> Target | None:
    """Without what was not asked for: the planner's time in a run of kernels alone."""
    step = row.step
    if step.dtype == "float16" and step.title_for(dtype="bfloat16") in TARGETS:
        return FP16
    target = TARGETS.get(step.title)
    return replace(target, plan_us=None) if target and OUR_PLAN not in row.times else target
