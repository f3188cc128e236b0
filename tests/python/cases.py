"""Random calls of mha_varlen with hostile data, and their comparison with the float64 reference."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

import varattn

INT32_MAX = 2**31 - 1
NUM_SPLITS_DEFAULT_BOUND = 64

# Allowed |out - reference| over sum(p * |v|), the size of the terms of a sum. P is rounded to the dtype of V.
OUT_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.2e-2, torch.float16: 1.6e-3}
LSE_TOLERANCE = 2e-4

# Options: not batch-invariant, batch-invariant without splits, and with splits.
INVARIANCE = [{}, dict(batch_invariant=True), dict(batch_invariant=True, num_splits=32)]


def dtypes_of(device: str) -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16] + ([torch.float32] if device == "cpu" else [])


@dataclass
class Case:
    """What a call is made of, before there are tensors."""

    q_lens: list[int]
    kv_lens: list[int]
    num_heads_q: int = 4
    num_heads_kv: int = 2
    head_dim: int = 64
    head_dim_v: int = 64
    dtype: torch.dtype = torch.bfloat16
    layout: str = "nhd"  # "packed", "packed_used", or paged: "nhd", "hnd", "interleaved"
    page_size: int = 16
    causal: bool = True
    window_size: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    sinks: torch.dtype | None = None
    softmax_scale: float | None = None
    num_splits: int = 0
    batch_invariant: bool = False
    q_padding: int = 0  # rows of q past cu_seqlens_q[-1]
    give_plan: bool = True
    give_out: bool = True

    @property
    def paged(self) -> bool:
        return not self.layout.startswith("packed")

    @property
    def total_q(self) -> int:
        return sum(self.q_lens) + self.q_padding

    def plan_options(self) -> dict:
        return dict(
            num_heads_q=self.num_heads_q,
            num_heads_kv=self.num_heads_kv,
            head_dim=self.head_dim,
            head_dim_v=self.head_dim_v,
            dtype=self.dtype,
            **self.shared_options(),
        )

    def shared_options(self) -> dict:
        """Arguments that plan and mha_varlen have in common."""
        return dict(
            causal=self.causal,
            window_size=self.window_size,
            num_splits=self.num_splits,
            batch_invariant=self.batch_invariant,
        )


@dataclass
class Inputs:
    case: Case
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cu_seqlens_q: torch.Tensor
    lengths: dict[str, torch.Tensor]  # those of cu_seqlens_k, seqused_k, block_table that the layout has
    math: dict = field(default_factory=dict)  # softmax_scale, softcap, sinks

    @property
    def tensors(self) -> tuple:
        return self.q, self.k, self.v, self.cu_seqlens_q

    def plan_lengths(self) -> dict:
        return {name: t for name, t in self.lengths.items() if name != "block_table"}


def offsets(lens, device) -> torch.Tensor:
    return torch.tensor([0, *lens], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)


def int32(values, device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def make_inputs(case: Case, device: str, poison: float = torch.nan) -> Inputs:
    """Whatever the operator must not read holds `poison`, or a wild index."""
    total_q = case.total_q
    q = torch.randn(total_q, case.num_heads_q, case.head_dim, device=device, dtype=torch.float32).to(case.dtype)
    q[sum(case.q_lens) :] = poison
    make = _packed_cache if not case.paged else _paged_cache
    k, v, lengths = make(case, device, poison)
    math = dict(softmax_scale=case.softmax_scale, softcap=case.softcap)
    if case.sinks is not None:
        math["sinks"] = torch.randn(case.num_heads_q, device=device).to(case.sinks)
    return Inputs(case, q, k, v, offsets(case.q_lens, device), lengths, math)


def _packed_cache(case, device, poison):
    # Each sequence's range of rows is longer than what it uses, where seqused_k says how much that is.
    ranges = [n + random.choice([0, 0, 1, 5, 70]) if case.layout == "packed_used" else n for n in case.kv_lens]
    rows = sum(ranges) + random.choice([0, 3])
    k = torch.full((rows, case.num_heads_kv, case.head_dim), poison, dtype=case.dtype, device=device)
    v = torch.full((rows, case.num_heads_kv, case.head_dim_v), poison, dtype=case.dtype, device=device)
    begin = 0
    for used, length in zip(case.kv_lens, ranges, strict=True):
        k[begin : begin + used] = _randn_like(k[begin : begin + used])
        v[begin : begin + used] = _randn_like(v[begin : begin + used])
        begin += length
    lengths = dict(cu_seqlens_k=offsets(ranges, device))
    if case.layout == "packed_used":
        lengths["seqused_k"] = int32(case.kv_lens, device)
    return k, v, lengths


def _randn_like(t):
    return torch.randn(t.shape, device=t.device).to(t.dtype)


def _paged_cache(case, device, poison):
    page_size = case.page_size
    pages = [-(-n // page_size) for n in case.kv_lens]
    num_pages = sum(pages) + random.choice([0, 1, 4])
    k, v = empty_cache(case, num_pages, device)
    k.fill_(poison)
    v.fill_(poison)
    ids = random.sample(range(num_pages), sum(pages))
    width = max([*pages, 0]) + random.choice([0, 1, 3])
    table = [[random.choice([-1, INT32_MAX, -INT32_MAX, num_pages]) for _ in range(width)] for _ in pages]
    used = torch.zeros(num_pages * page_size, dtype=torch.bool)
    for row, (count, length) in enumerate(zip(pages, case.kv_lens, strict=True)):
        mine, ids = ids[:count], ids[count:]
        table[row][:count] = mine
        for index, page in enumerate(mine):
            used[page * page_size : page * page_size + min(page_size, length - index * page_size)] = True
    used = used.view(num_pages, page_size).to(device)
    k[used] = _randn_like(k[used])
    v[used] = _randn_like(v[used])
    lengths = dict(
        seqused_k=int32(case.kv_lens, device),
        block_table=int32(table, device).view(len(pages), width),
    )
    return k, v, lengths


def empty_cache(case, num_pages, device):
    """K and V as (num_pages, page_size, num_heads_kv, dim), laid out in memory as case.layout says."""
    heads, page_size, dims = case.num_heads_kv, case.page_size, (case.head_dim, case.head_dim_v)
    make = dict(dtype=case.dtype, device=device)
    if case.layout == "nhd":
        return tuple(torch.empty(num_pages, page_size, heads, dim, **make) for dim in dims)
    if case.layout == "hnd":
        return tuple(torch.empty(num_pages, heads, page_size, dim, **make).transpose(1, 2) for dim in dims)
    assert case.layout == "interleaved"  # K and V of a token side by side
    both = torch.empty(num_pages, page_size, heads, sum(dims), **make)
    return both[..., : dims[0]], both[..., dims[0] :]


def make_plan(x: Inputs, **changes) -> varattn.Plan:
    options = dict(max_total_q=max(x.case.total_q, 1), **x.case.plan_options()) | changes
    return varattn.plan(x.cu_seqlens_q, **x.plan_lengths(), **options)


def run(x: Inputs, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse). Outputs, where given, are full of NaN before the call."""
    case = x.case
    options = dict(**x.lengths, **x.math, **case.shared_options())
    if case.give_plan:
        options["plan"] = make_plan(x)
    if case.give_out:
        shape = (case.total_q, case.num_heads_q, case.head_dim_v)
        options["out"] = torch.full(shape, torch.nan, dtype=case.dtype, device=x.q.device)
        options["lse"] = torch.full((case.num_heads_q, case.total_q), torch.nan, device=x.q.device)
    out, lse = varattn.mha_varlen(*x.tensors, **(options | changes), return_lse=True)
    if options.get("plan") is not None:
        varattn.check(options["plan"])
    return out, lse


def reference(x: Inputs, v: torch.Tensor | None = None):
    v = x.v if v is None else v
    return varattn.reference.mha_varlen(
        x.q,
        x.k,
        v,
        x.cu_seqlens_q,
        **x.lengths,
        **x.math,
        causal=x.case.causal,
        window_size=x.case.window_size,
    )


def assert_matches_reference(x: Inputs, out: torch.Tensor, lse: torch.Tensor) -> None:
    want, want_lse = reference(x)
    size = reference(x, x.v.abs())[0]
    assert out.dtype == x.q.dtype and lse.dtype == torch.float32
    assert out.shape == want.shape and lse.shape == want_lse.shape
    allowed = OUT_TOLERANCE[x.q.dtype] * size + 1e-6
    _assert_within("out (row, head, dim)", out.double(), want, allowed, x.case)
    empty = torch.isinf(want_lse)
    assert torch.equal(torch.isinf(lse), empty) and (lse[empty] < 0).all(), f"LSE is -inf elsewhere: {x.case}"
    allowed = LSE_TOLERANCE * (1 + want_lse.abs())
    _assert_within("lse (head, row)", lse.double()[~empty], want_lse[~empty], allowed[~empty], x.case)


def _assert_within(what, got, want, allowed, case):
    wrong = ~((got - want).abs() <= allowed)  # so that NaN is wrong
    if not wrong.any():
        return
    excess = ((got - want).abs() / allowed).nan_to_num(nan=torch.inf)
    worst = divmod_index(int(excess.argmax()), got.shape)
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.numel()} differ; the worst at {worst}: got {float(got[worst]):.6g}, "
        f"want {float(want[worst]):.6g}, allowed error {float(allowed[worst]):.2g}; {case}"
    )


def divmod_index(flat: int, shape) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        flat, i = divmod(flat, size)
        index.append(i)
    return tuple(reversed(index))


HEAD_DIMS = [64, 64, 128, 128, 256, 8, 24, 40, 72, 80, 96, 120, 136, 192, 200, 248]
PAGE_SIZES = [1, 2, 3, 4, 7, 8, 16, 16, 17, 32, 64, 100, 128, 256]
GROUPS = [*range(1, 17), 128]


def random_case(device: str, max_flops: float = 3e8) -> Case:
    """Draws until a case is small enough to be checked in float64 in no time."""
    while True:
        case = _draw_case(device)
        dims = case.head_dim + case.head_dim_v
        flops = sum(2 * m * n for m, n in zip(case.q_lens, case.kv_lens, strict=True)) * case.num_heads_q * dims
        if flops <= max_flops:
            return case


def _draw_case(device: str) -> Case:
    num_seqs = random.choice([0, 1, 1, 2, 3, 5, 9, 20])
    q_lens = [random.choice([0, 1, 1, 1, random.randint(2, 16), random.randint(17, 300)]) for _ in range(num_seqs)]
    kv_lens = []
    for q_len in q_lens:
        drawn = random.choice([0, 1, 63, 64, 65, random.randint(2, 300), random.randint(300, 3000), q_len])
        kv_lens.append(drawn if random.random() < 0.3 else max(drawn, q_len))  # the rest: q may be longer than kv
    group = random.choice(GROUPS)
    num_heads_kv = 1 if group > 16 else random.choice([1, 1, 2, 3, 4])
    head_dim = random.choice(HEAD_DIMS)
    window = lambda: random.choice([-1, 0, 1, random.randint(2, 40), random.randint(41, 700)])  # noqa: E731
    causal = random.random() < 0.5
    return Case(
        q_lens=q_lens,
        kv_lens=kv_lens,
        num_heads_q=group * num_heads_kv,
        num_heads_kv=num_heads_kv,
        head_dim=head_dim,
        head_dim_v=head_dim if random.random() < 0.6 else random.choice(HEAD_DIMS),
        dtype=random.choice(dtypes_of(device)),
        layout=random.choice(["packed", "packed_used", "nhd", "hnd", "interleaved"]),
        page_size=random.choice(PAGE_SIZES),
        causal=causal,
        window_size=(-1, -1) if random.random() < 0.5 else (window(), -1 if causal else window()),
        softcap=random.choice([0.0, 0.0, 0.0, 5.0, 30.0]),
        sinks=random.choice([None, None, torch.float32, torch.bfloat16]),
        softmax_scale=random.choice([None, None, 0.05, 0.2]),
        num_splits=random.choice([0, 0, 1, 2, 3, random.randint(4, NUM_SPLITS_DEFAULT_BOUND), 256]),
        batch_invariant=random.random() < 0.15,
        q_padding=random.choice([0, 0, 1, 40]),
        give_plan=random.random() < 0.7,
        give_out=random.random() < 0.7,
    )
