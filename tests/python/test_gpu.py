"""Streams, CUDA graphs, syncs and allocations: what only a GPU can show."""

import json
import random

import pytest
import torch
from cases import INVARIANCE, Case, Inputs, assert_matches_reference, int32, make_inputs, make_plan, run

import varattn

pytestmark = pytest.mark.gpu

SLEEP_CYCLES = 200_000_000  # about 0.1 s: longer than any launch takes


def buffers_of(x, **changes):
    """Plan buffer, workspace and outputs, made ahead; the outputs are full of NaN."""
    case, device = x.case, x.q.device
    capacity = (len(case.q_lens), max(case.total_q, 1))
    options = dict(**case.plan_options(), device=device) | changes
    return dict(
        plan=torch.zeros(varattn.plan_size(*capacity, **options), dtype=torch.uint8, device=device),
        workspace=torch.zeros(varattn.workspace_size(*capacity, **options), dtype=torch.uint8, device=device),
        out=torch.full((case.total_q, case.num_heads_q, case.head_dim_v), torch.nan, dtype=case.dtype, device=device),
        lse=torch.full((case.num_heads_q, case.total_q), torch.nan, device=device),
    )


def step(x, buffers):
    """Plans and attends with caller-owned buffers alone."""
    plan = make_plan(x, out=buffers["plan"])
    given = {name: buffers[name] for name in ("workspace", "out", "lse")}
    varattn.mha_varlen(*x.tensors, **x.lengths, **x.math, **x.case.shared_options(), plan=plan, **given)
    return plan


def mixed_case(**changes):
    return Case([1, 70, 3, 1], [4000, 300, 900, 20], num_heads_q=8, num_heads_kv=2, **changes)


# ---- Streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["packed", "nhd"])
def test_inputs_made_on_a_side_stream_are_seen_there(seed, layout):
    """Everything that the call reads is written late on the side stream; nothing synchronises."""
    x = make_inputs(mixed_case(layout=layout), "cuda")
    want, want_lse = run(x)
    late = Inputs(
        x.case,
        *(torch.full_like(t, torch.nan) for t in (x.q, x.k, x.v)),
        torch.zeros_like(x.cu_seqlens_q),
        {name: torch.zeros_like(t) for name, t in x.lengths.items()},
        x.math,
    )
    buffers = buffers_of(x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP_CYCLES)
        for to, source in zip(late.tensors, x.tensors, strict=True):
            to.copy_(source)
        for name, t in late.lengths.items():
            t.copy_(x.lengths[name])
        step(late, buffers)
        seen, seen_lse = buffers["out"].clone(), buffers["lse"].clone()  # consumed there
    side.synchronize()
    assert torch.equal(seen, want) and torch.equal(seen_lse, want_lse)


def test_calls_without_buffers_run_on_the_current_stream_too(seed):
    x = make_inputs(mixed_case(sinks=torch.bfloat16), "cuda")
    x.case.give_plan = False
    want, _ = run(x)
    q = torch.full_like(x.q, torch.nan)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP_CYCLES)
        q.copy_(x.q)
        out = varattn.mha_varlen(q, *x.tensors[1:], **x.lengths, **x.math, **x.case.shared_options())
    side.synchronize()
    assert torch.equal(out, want)


def kernels_by_stream(work, tmp_path):
    """{kernel name: [stream, ...]} and the categories of all device events of `work`."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    streams, categories = {}, set()
    for e in events:
        if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            categories.add(e["cat"])
            if e["cat"] == "kernel":
                streams.setdefault(e["name"], []).append(e["args"]["stream"])
    if not streams:
        pytest.skip("torch.profiler records no kernels on this machine")
    return streams, categories


def test_kernels_are_on_the_current_stream_one_launch_and_no_copies(seed, tmp_path):
    x = make_inputs(mixed_case(), "cuda")
    buffers, side = buffers_of(x), torch.cuda.Stream()
    marker = torch.ones(8, device="cuda", dtype=torch.float64)
    step(x, buffers)
    torch.cuda.synchronize()

    def work():
        with torch.cuda.stream(side):
            marker.erfinv_()
            step(x, buffers)
        torch.sinh_(marker)

    streams, categories = kernels_by_stream(work, tmp_path)
    side_id = next(s for name, (s, *_) in streams.items() if "erfinv" in name)
    default_id = next(s for name, (s, *_) in streams.items() if "sinh" in name)
    mine = {name: s for name, s in streams.items() if "varattn" in name}
    assert side_id != default_id
    assert {s for ids in mine.values() for s in ids} == {side_id}, mine
    attention = {name: s for name, s in mine.items() if "plan" not in name}
    assert sum(len(s) for s in attention.values()) == 1, f"one launch: {attention}"
    assert categories == {"kernel"}, "a copy or a memset"


@pytest.mark.parametrize("num_streams", [2, 4])
def test_streams_share_a_plan_with_workspaces_of_their_own(seed, num_streams):
    x = make_inputs(mixed_case(), "cuda")
    want, want_lse = run(x)
    plan = make_plan(x)
    assert plan.items()["num_splits"].max() > 1
    streams = [torch.cuda.Stream() for _ in range(num_streams)]
    buffers = [buffers_of(x) for _ in streams]
    wrong = torch.zeros(num_streams, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    for _ in range(500):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                given = {name: buffers[i][name] for name in ("workspace", "out", "lse")}
                given["out"].fill_(torch.nan)
                varattn.mha_varlen(*x.tensors, **x.lengths, plan=plan, causal=True, **given)
                wrong[i] += (given["out"] != want).any() | (given["lse"] != want_lse).any()
    torch.cuda.synchronize()
    assert wrong.tolist() == [0] * num_streams
    varattn.check(plan)


def test_tensors_of_another_device_than_the_current_one(seed):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    x = make_inputs(mixed_case(), "cuda:1")
    assert torch.cuda.current_device() == 0
    assert_matches_reference(x, *run(x))
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("holds", ["zeros", "noise", "a plan with noise for items"])
def test_a_refused_launch_leaves_the_workspace_fit_for_the_next(seed, holds):
    """Whatever the plan's buffer holds, which the kernel looks at before it is known to be a plan."""
    x = make_inputs(mixed_case(), "cuda")
    buffers = buffers_of(x)
    for _ in range(10):
        plan = make_plan(x, out=buffers["plan"])
        if holds == "zeros":
            plan.buffer.zero_()
        elif holds == "noise":
            plan.buffer.random_()
        else:
            plan.buffer[256:].random_()
            plan.buffer[0] ^= 1  # of the magic number
        given = {name: buffers[name] for name in ("workspace", "out", "lse")}
        varattn.mha_varlen(*x.tensors, **x.lengths, **x.math, **x.case.shared_options(), plan=plan, **given)
        assert buffers["out"].isnan().all()
        with pytest.raises(varattn.PlanError, match="holds no plan"):
            varattn.check(plan)
        step(x, buffers)
        assert_matches_reference(x, buffers["out"], buffers["lse"])
        buffers["out"].fill_(torch.nan)


# ---- CUDA graphs -----------------------------------------------------------------------------------------------------


def capture(work, stream=None):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph


def test_capture_on_a_created_stream(seed):
    x = make_inputs(mixed_case(), "cuda")
    want, want_lse = run(x)
    buffers = buffers_of(x)
    graph = capture(lambda: step(x, buffers), torch.cuda.Stream())
    for _ in range(3):
        buffers["out"].fill_(torch.nan), buffers["lse"].fill_(torch.nan)
        graph.replay()
        assert torch.equal(buffers["out"], want) and torch.equal(buffers["lse"], want_lse)


def test_capture_without_buffers(seed):
    x = make_inputs(mixed_case(sinks=torch.bfloat16), "cuda")
    x.case.give_plan = False
    want, _ = run(x)
    results = []
    call = lambda: results.append(varattn.mha_varlen(*x.tensors, **x.lengths, **x.math, causal=True))  # noqa: E731
    graph = capture(call)
    graph.replay()
    assert torch.equal(results[0], want)


MAX_SEQS, MAX_TOTAL_Q, PAGE_SIZE, LONGEST = 8, 64, 64, 131072


@pytest.mark.parametrize("options", INVARIANCE, ids=str)
def test_graph_captured_tiny_serves_every_batch_up_to_its_capacity(seed, options):
    """Captured with one sequence of 16 keys; replayed up to 128k keys, more and fewer sequences: eager's bits."""
    case = Case([1], [16], num_heads_q=8, num_heads_kv=2, page_size=PAGE_SIZE, **options)
    num_pages = LONGEST // PAGE_SIZE + 64
    k, v = (torch.randn(num_pages, PAGE_SIZE, 2, 64, device="cuda").to(torch.bfloat16) for _ in "kv")
    q = torch.randn(MAX_TOTAL_Q, 8, 64, device="cuda").to(torch.bfloat16)
    table = torch.stack([torch.randperm(num_pages, device="cuda") for _ in range(MAX_SEQS)]).int()
    x = Inputs(
        case,
        q,
        k,
        v,
        torch.zeros(MAX_SEQS + 1, dtype=torch.int32, device="cuda"),
        dict(seqused_k=torch.zeros(MAX_SEQS, dtype=torch.int32, device="cuda"), block_table=table),
    )
    case.q_lens = [MAX_TOTAL_Q] + [0] * (MAX_SEQS - 1)  # the capacity

    def load(q_lens, kv_lens):
        cu = [0]
        for n in q_lens + [0] * (MAX_SEQS - len(q_lens)):
            cu.append(cu[-1] + n)
        x.cu_seqlens_q.copy_(int32(cu, "cuda"))
        x.lengths["seqused_k"].copy_(int32(kv_lens + [0] * (MAX_SEQS - len(kv_lens)), "cuda"))

    load([1], [16])
    buffers = buffers_of(x)
    graph = capture(lambda: step(x, buffers))
    steps = [
        ([1], [1]),
        ([1], [LONGEST]),
        ([1] * 8, [1000] * 8),
        ([57] + [1] * 7, [LONGEST, 1, 16, 1000] * 2),
        ([], []),
    ]
    for _ in range(5):
        q_lens = [random.randint(0, 8) for _ in range(random.randint(1, MAX_SEQS))]
        steps.append((q_lens, [n + random.choice([0, 1, 100, 5000, LONGEST - 8]) for n in q_lens]))
    for q_lens, kv_lens in steps:
        load(q_lens, kv_lens)
        eager = buffers_of(x)
        varattn.check(step(x, eager))
        buffers["out"].fill_(torch.nan), buffers["lse"].fill_(torch.nan)
        graph.replay()
        assert torch.equal(buffers["out"], eager["out"]), (q_lens, kv_lens)
        assert torch.equal(buffers["lse"], eager["lse"]), (q_lens, kv_lens)
        assert_matches_reference(x, buffers["out"], buffers["lse"])


def test_graph_survives_lengths_past_its_capacity(seed):
    x = make_inputs(mixed_case(), "cuda", poison=0.0)
    buffers = buffers_of(x)
    plan = None

    def work():
        nonlocal plan
        plan = step(x, buffers)

    graph = capture(work)
    good = x.cu_seqlens_q.clone(), x.lengths["seqused_k"].clone()
    graph.replay()
    want = buffers["out"].clone()
    for wild in (2**31 - 1, -(2**31), 10**6):
        x.cu_seqlens_q[2], x.lengths["seqused_k"][0] = wild, wild
        graph.replay()
        with pytest.raises(varattn.PlanError):
            varattn.check(plan)
    x.cu_seqlens_q.copy_(good[0]), x.lengths["seqused_k"].copy_(good[1])
    graph.replay()
    varattn.check(plan)
    assert torch.equal(buffers["out"], want)


# ---- Syncs and memory ------------------------------------------------------------------------------------------------


def test_nothing_synchronises(seed):
    x = make_inputs(mixed_case(sinks=torch.bfloat16), "cuda")
    buffers = buffers_of(x)
    step(x, buffers)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, buffers)
        varattn.mha_varlen(*x.tensors, **x.lengths, **x.math, causal=True)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_calls_with_buffers_allocate_nothing(seed):
    x = make_inputs(mixed_case(sinks=torch.float32), "cuda")
    buffers = buffers_of(x)
    step(x, buffers)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        step(x, buffers)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_pools_past_2_to_the_32_elements(seed):
    """Page ids whose elements lie past 2**31 and 2**32."""
    page_size, heads, dim = 64, 8, 128
    num_pages = 2**32 // (page_size * heads * dim) + 8
    needed = 2 * 2 * num_pages * page_size * heads * dim
    if torch.cuda.mem_get_info()[0] < needed + (2 << 30):
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory")
    k, v = (torch.empty(num_pages, page_size, heads, dim, dtype=torch.bfloat16, device="cuda") for _ in "kv")
    pages = [0, num_pages // 2 - 1, num_pages // 2 + 1, num_pages - 8, num_pages - 1]
    for page in pages:
        k[page], v[page] = torch.randn_like(k[page]), torch.randn_like(v[page])
    case = Case([3], [page_size * len(pages)], num_heads_q=16, num_heads_kv=heads, head_dim=dim, head_dim_v=dim)
    q = torch.randn(3, 16, dim, device="cuda").to(torch.bfloat16)
    lengths = dict(seqused_k=int32(case.kv_lens, "cuda"), block_table=int32([pages], "cuda"))
    x = Inputs(case, q, k, v, int32([0, 3], "cuda"), lengths)
    got = run(x)
    few = Inputs(case, q, k[pages], v[pages], x.cu_seqlens_q, lengths | dict(block_table=int32([range(5)], "cuda")))
    assert_matches_reference(few, *got)
