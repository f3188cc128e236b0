"""Plans: the structs as Python decodes them, both planners item for item, what a mismatch and a bad length say."""

import random

import numpy as np
import pytest
import torch
from cases import Case, int32, make_inputs, make_plan, offsets, random_case, run

import varattn
from varattn.planner import CONFIG_DTYPE, HEADER_DTYPE, ITEM_DTYPE, MAGIC, decode_header

try:
    from varattn import host
except ImportError as error:  # the pybind11 module is for one version of Python
    host, why_no_host = None, str(error)
else:
    why_no_host = ""
needs_host = pytest.mark.skipif(host is None, reason=why_no_host)


@needs_host
def test_numpy_dtypes_are_the_structs_of_the_library():
    layouts = host.struct_layouts()
    assert layouts["magic"] == MAGIC
    for name, dtype in (("PlanHeader", HEADER_DTYPE), ("PlanConfig", CONFIG_DTYPE), ("WorkItem", ITEM_DTYPE)):
        mine = {field: (offset, size.itemsize) for field, (size, offset) in dtype.fields.items()}
        assert mine | {"": (0, dtype.itemsize)} == layouts[name], name


def host_plan_of(x, device, max_total_q):
    """What the host planner makes of the same lengths for the same device."""
    case = x.case
    lengths = {name: t.tolist() for name, t in x.plan_lengths().items()}
    options = case.plan_options() | dict(dtype=str(case.dtype).removeprefix("torch."))
    return host.plan(
        x.cu_seqlens_q.tolist(), **lengths, max_total_q=max_total_q, device=host.device_of(device), **options
    )


def assert_same_plan(plan, want):
    header, items = plan.header(), plan.items()
    for field in HEADER_DTYPE.names:
        assert np.array_equal(header[field], want.header[field]), field
    assert len(items) == len(want.items)
    different = np.flatnonzero(items != want.items)
    assert not len(different), f"item {different[0]}: got {items[different[0]]}, want {want.items[different[0]]}"


@needs_host
@pytest.mark.parametrize("part", range(4))
def test_op_and_host_planner_agree_byte_for_byte(device, seed, part):
    for _ in range(50):
        case = random_case(device)
        if random.random() < 0.3:
            case.q_lens = [random.choice([0, 1, 1, 4, 300]) for _ in range(random.choice([300, 1024, 2500]))]
            case.kv_lens = [random.randint(0, 20000) for _ in case.q_lens]
        if case.paged:
            lengths = dict(seqused_k=int32(case.kv_lens, device))
        else:
            lengths = dict(cu_seqlens_k=offsets(case.kv_lens, device))
        x = PlanInputs(case, offsets(case.q_lens, device), lengths)
        max_total_q = case.total_q + random.choice([0, 7])
        plan = make_plan(x, max_total_q=max_total_q)
        assert_same_plan(plan, host_plan_of(x, device, max_total_q))


class PlanInputs:
    def __init__(self, case, cu_seqlens_q, lengths):
        self.case, self.cu_seqlens_q, self.lengths = case, cu_seqlens_q, lengths

    def plan_lengths(self):
        return self.lengths


def hostile_lengths(device):
    """(what the status must name, arguments of plan). Capacity: 3 sequences, 40 rows."""
    cu = lambda *x: dict(cu_seqlens_q=int32(x, device))  # noqa: E731
    used = lambda *x: dict(seqused_k=int32(x, device))  # noqa: E731
    lowest, highest = -(2**31), 2**31 - 1
    good_q, good_k = cu(0, 5, 6, 40), used(50, 60, 70)
    return [
        ("cu_seqlens_q", cu(0, 5, 3, 40) | good_k),
        ("cu_seqlens_q", cu(-1, 5, 6, 40) | good_k),
        ("cu_seqlens_q", cu(0, 5, 6, 41) | good_k),
        ("cu_seqlens_q", cu(highest, lowest, highest, lowest) | good_k),
        ("seqused_k", good_q | used(-1, 60, 70)),
        ("seqused_k", good_q | used(highest, lowest, 70)),
        ("cu_seqlens_k", good_q | dict(cu_seqlens_k=int32([0, 9, 3, 20], device))),
        ("cu_seqlens_k", good_q | dict(cu_seqlens_k=int32([lowest, 9, highest, highest], device))),
        ("seqused_k", good_q | used(9, 1000, 0) | dict(cu_seqlens_k=int32([0, 9, 30, 40], device))),
    ]


@needs_host
@pytest.mark.parametrize("index", range(9))
def test_hostile_lengths_set_the_status_and_are_clamped_as_on_the_host(device, index):
    field, lengths = hostile_lengths(device)[index]
    options = dict(num_heads_q=4, num_heads_kv=2, head_dim=64, max_total_q=40, causal=True)
    plan = varattn.plan(**lengths, **options, dtype=torch.bfloat16)
    with pytest.raises(varattn.PlanError, match=field):
        varattn.check(plan)
    lists = {name: t.tolist() for name, t in lengths.items()}
    assert_same_plan(plan, host.plan(**lists, **options, dtype="bfloat16", device=host.device_of(device)))


# Each is (the field that the message must name, what the plan was made for). The call is that of small_inputs.
MISMATCHES = [
    (r"num_heads_q: got a plan made for 8; takes one made for 4", dict(num_heads_q=8)),
    (r"num_heads_kv: got a plan made for 1; takes one made for 2", dict(num_heads_kv=1)),
    (r"head_dim: got a plan made for 128; takes one made for 64", dict(head_dim=128)),
    (r"head_dim_v: got a plan made for 32; takes one made for 64", dict(head_dim_v=32)),
    (r"dtype: got a plan made for torch.float16; takes one made for torch.bfloat16", dict(dtype=torch.float16)),
    (r"window_size\[1\] \(causal\): got a plan made for -1; takes one made for 0", dict(causal=False)),
    (r"window_size\[0\]: got a plan made for 9; takes one made for -1", dict(window_size=(9, -1))),
    (r"num_splits: got a plan made for 2; takes one made for 0", dict(num_splits=2)),
    (r"batch_invariant: got a plan made for True; takes one made for False", dict(batch_invariant=True)),
    (r"sm_margin: got a plan made for 3; takes one made for 0", dict(sm_margin=3)),
]


def small_inputs(device, **changes):
    return make_inputs(Case([5, 1], [9, 300], **changes), device)


@pytest.mark.parametrize(("message", "made_for"), MISMATCHES)
def test_plan_made_for_something_else_is_refused_by_name(device, message, made_for):
    x = small_inputs(device)
    with pytest.raises(varattn.PlanError, match=r"mha_varlen: plan: " + message):
        run(x, plan=make_plan(x, **made_for))


def test_plan_of_another_batch_size_or_layout_is_refused_by_name(device):
    x = small_inputs(device)
    three = make_inputs(Case([5, 1, 1], [9, 300, 2]), device)
    with pytest.raises(varattn.PlanError, match=r"plan: num_seqs: got a plan made for 3; takes one made for 2"):
        run(x, plan=make_plan(three))
    packed = small_inputs(device, layout="packed")
    with pytest.raises(varattn.PlanError, match=r"plan: got one made with cu_seqlens_k; takes one made without"):
        run(x, plan=make_plan(packed))
    with pytest.raises(varattn.PlanError, match=r"plan: got one made without cu_seqlens_k; takes one made with"):
        run(packed, plan=make_plan(x))
    used = small_inputs(device, layout="packed_used")
    with pytest.raises(varattn.PlanError, match=r"plan: got one made with seqused_k; takes one made without it"):
        run(packed, plan=make_plan(used))
    with pytest.raises(varattn.PlanError, match=r"plan: got one made without seqused_k; takes one made with it"):
        run(used, plan=make_plan(packed))
    with pytest.raises(TypeError, match=r"check: plan: got Tensor; takes a varattn.Plan"):
        varattn.check(make_plan(x).buffer)
    with pytest.raises(RuntimeError, match=r"mha_varlen: q: got shape \(6, 4, 64\); takes at most .* max_total_q = 5"):
        run(x, plan=make_plan(x, max_total_q=5))
    with pytest.raises(TypeError, match=r"mha_varlen: plan: got Tensor; takes a varattn.Plan"):
        run(x, plan=make_plan(x).buffer)


RAW_MISMATCHES = ["num_heads_q", "num_heads_kv", "head_dim_v", "dtype", "causal", "window_size", "num_splits"]


@pytest.mark.parametrize("made_for", [m for _, m in MISMATCHES if next(iter(m)) in RAW_MISMATCHES])
def test_raw_buffer_made_for_something_else_computes_nothing(device, made_for):
    """Below the Python face: the CPU op reads the header; a CUDA kernel finds out by itself."""
    x = small_inputs(device)
    plan = make_plan(x, **made_for, max_total_q=100)
    out = torch.full((6, 4, 64), 7.0, dtype=x.q.dtype, device=device)
    call = lambda: torch.ops.varattn.mha_varlen.out(  # noqa: E731
        *x.tensors, **x.lengths, plan=plan.buffer, causal=True, max_total_q=100, out=out
    )
    field = next(iter(made_for))
    if device == "cpu":
        with pytest.raises(RuntimeError, match=rf"mha_varlen: plan: .*{field}"):
            call()
    else:
        call()
        with pytest.raises(varattn.PlanError, match=rf"made for something else .*{field}"):
            varattn.check(plan)
    assert (out == 7).all()


def test_buffer_without_a_plan_computes_nothing(device):
    x = small_inputs(device)
    plan = make_plan(x)
    plan.buffer.fill_(0)
    out = torch.full((6, 4, 64), 7.0, dtype=x.q.dtype, device=device)
    if device == "cpu":
        with pytest.raises(RuntimeError, match=r"mha_varlen: plan: got a buffer that holds no plan of this version"):
            run(x, plan=plan, out=out)
    else:
        varattn.mha_varlen(*x.tensors, **x.lengths, plan=plan, causal=True, out=out)
        with pytest.raises(varattn.PlanError, match=r"holds no plan of this version"):
            varattn.check(plan)
    assert (out == 7).all()


def test_sizes_are_functions_of_capacity_and_buffers_of_them_suffice(device, seed):
    for _ in range(20):
        x = make_inputs(random_case(device), device)
        case = x.case
        capacity = (len(case.q_lens), max(case.total_q, 1))
        options = dict(**case.plan_options(), device=device)
        size, workspace_bytes = varattn.plan_size(*capacity, **options), varattn.workspace_size(*capacity, **options)
        assert make_plan(x).buffer.numel() == size
        plan = make_plan(x, out=torch.empty(size, dtype=torch.uint8, device=device))
        workspace = torch.zeros(workspace_bytes, dtype=torch.uint8, device=device)
        want = run(x)
        for _ in range(3):  # the workspace is left as it must be found
            out, lse = run(x, plan=plan, workspace=workspace)
            assert torch.equal(out, want[0]) and torch.equal(lse, want[1])


def test_plan_is_written_again_in_place(device):
    a, b = small_inputs(device), make_inputs(Case([2, 3], [200, 7]), device)
    plan = make_plan(a, max_total_q=10)
    again = make_plan(b, max_total_q=10, out=plan)
    assert again.buffer.data_ptr() == plan.buffer.data_ptr()
    assert again.header()["q_end"] == 5
    assert torch.equal(run(b, plan=again)[0], run(b)[0])


def test_workspace_does_not_grow_with_the_batch(device):
    options = dict(num_heads_q=32, num_heads_kv=8, head_dim=128, dtype=torch.bfloat16, device=device)
    sizes = {varattn.workspace_size(n, n * 10, **options) for n in (1, 100, 1024, 4096)}
    assert len(sizes) == 1
    assert sizes.pop() <= 40 << 20


def test_one_workspace_serves_configs_in_turn(device):
    """Zeroed once: where one config has partial results, another must not have counters."""
    shapes = [(4, 2, 64), (8, 1, 64), (2, 2, 128), (16, 4, 64)]
    inputs = [
        make_inputs(Case([1, 30], [5000, 3000], num_heads_q=q, num_heads_kv=kv, head_dim=d, head_dim_v=d), device)
        for q, kv, d in shapes
    ]
    want = [run(x) for x in inputs]
    size = max(varattn.workspace_size(2, 31, **x.case.plan_options(), device=device) for x in inputs)
    workspace = torch.zeros(size, dtype=torch.uint8, device=device)
    plans = [make_plan(x) for x in inputs]
    assert all(plan.header()["num_split_tiles"] > 0 for plan in plans)
    for _ in range(3):
        for x, plan, (out, lse) in zip(inputs, plans, want, strict=True):
            got = run(x, plan=plan, workspace=workspace)
            assert torch.equal(got[0], out) and torch.equal(got[1], lse)


@needs_host
def test_describe_status_has_a_sentence_for_every_bit():
    for bit in (*range(7), 31):
        assert torch.ops.varattn.describe_status(1 << bit) == host.describe_status(1 << bit) != ""
    both = torch.ops.varattn.describe_status(0b11)
    assert "cu_seqlens_q" in both and "cu_seqlens_k" in both
    assert torch.ops.varattn.describe_status(0) == ""


@needs_host
def test_host_planner_refuses_by_name():
    options = dict(num_heads_q=4, num_heads_kv=2, head_dim=64)
    with pytest.raises(ValueError, match=r"plan: seqused_k: got 1 numbers; takes 2"):
        host.plan([0, 1, 2], seqused_k=[1], **options)
    with pytest.raises(ValueError, match=r"plan: cu_seqlens_q: got .*; takes"):
        host.plan([], seqused_k=[], **options)
    with pytest.raises(ValueError, match=r"plan: dtype: got int8; takes float32, float16 or bfloat16"):
        host.plan([0, 1], seqused_k=[1], **options, dtype="int8")
    with pytest.raises(ValueError, match=r"plan: dtype: got float32; takes float16 or bfloat16"):
        host.plan([0, 1], seqused_k=[1], **options, dtype="float32", device=host.H100)
    with pytest.raises(varattn.PlanError, match=r"plan: magic: got 0x0"):
        decode_header(bytes(256))


@needs_host
def test_kernel_table_lists_every_backend():
    table = host.kernels()
    assert [row["id"] for row in table] == list(range(len(table)))
    assert {row["device"] for row in table} == {"cpu", "cuda"}
