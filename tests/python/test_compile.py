"""opcheck of every op, fake kernels, torch.compile with dynamic sizes, autograd's refusal."""

import random
from contextlib import nullcontext

import pytest
import torch
from cases import Case, assert_matches_reference, int32, make_inputs, make_plan, offsets, run

import varattn

OPS = torch.ops.varattn


def small_inputs(device, **changes):
    return make_inputs(Case([5, 0, 1, 20], [9, 4, 300, 20], dtype=torch.float16, **changes), device)


def workspace_for(x):
    case = x.case
    options = case.plan_options()
    return torch.zeros(
        varattn.workspace_size(len(case.q_lens), case.total_q, device=x.q.device, **options),
        dtype=torch.uint8,
        device=x.q.device,
    )


@pytest.mark.parametrize("layout", ["packed", "packed_used", "nhd", "hnd"])
def test_opcheck_mha_varlen(device, layout):
    x = small_inputs(device, layout=layout, sinks=torch.float32)
    torch.library.opcheck(OPS.mha_varlen.default, x.tensors, dict(**x.lengths, **x.math, causal=True))


def test_opcheck_mha_varlen_with_buffers(device):
    x = small_inputs(device)
    plan = make_plan(x)
    options = dict(**x.lengths, causal=True, plan=plan.buffer, workspace=workspace_for(x), max_total_q=plan.max_total_q)
    # The plan's and the workspace's bytes are found again as they were, so mutation need not show.
    torch.library.opcheck(OPS.mha_varlen.default, x.tensors, options)


def test_opcheck_mha_varlen_out(device):
    x = small_inputs(device)
    out = torch.empty(x.case.total_q, x.case.num_heads_q, x.case.head_dim_v, dtype=x.q.dtype, device=device)
    lse = torch.empty(x.case.num_heads_q, x.case.total_q, device=device)
    for options in (dict(out=out, lse=lse), dict(out=out)):
        torch.library.opcheck(OPS.mha_varlen.out, x.tensors, dict(**x.lengths, causal=True, **options))


def test_opcheck_plan(device):
    x = small_inputs(device)
    options = dict(max_total_q=30, **x.plan_lengths(), **x.case.plan_options())
    torch.library.opcheck(OPS.plan.default, (x.cu_seqlens_q,), options)
    size = varattn.plan_size(len(x.case.q_lens), 30, device=device, **x.case.plan_options())
    out = torch.zeros(size, dtype=torch.uint8, device=device)
    torch.library.opcheck(OPS.plan.out, (x.cu_seqlens_q,), dict(**options, out=out))


def test_opcheck_sizes_and_status(device):
    options = dict(num_heads_q=8, num_heads_kv=2, head_dim=64, dtype=torch.float16, device=torch.device(device, 0))
    for op in (OPS.plan_size.default, OPS.workspace_size.default):
        torch.library.opcheck(op, (4, 100), options, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(OPS.describe_status.default, (1,), test_utils=("test_schema", "test_faketensor"))


def random_step(device):
    q_lens = [random.choice([1, 1, random.randint(2, 40)]) for _ in range(random.randint(2, 9))]
    kv_lens = [n + random.randint(0, 200) for n in q_lens]
    kv_lens[0] += 100  # so that no block table is one page wide: torch.compile takes sizes of 1 for constants
    return make_inputs(Case(q_lens, kv_lens, dtype=torch.float16), device)


def sizes_differ(x):
    """Whether no size that changes from step to step equals another one of the step by chance."""
    changing = {x.q.shape[0], x.k.shape[0], *x.cu_seqlens_q.shape, *x.lengths["block_table"].shape}
    constant = {size for t in (x.q, x.k, x.v) for size in t.shape[1:]}
    return len(changing) == 5 and not changing & constant


def test_compile_takes_50_shapes_with_at_most_one_recompile(device, seed):
    def step(q, k, v, cu_seqlens_q, seqused_k, block_table):
        return varattn.mha_varlen(
            q * 1, k, v, cu_seqlens_q, seqused_k=seqused_k, block_table=block_table, causal=True, return_lse=True
        )

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    # torch.compile takes sizes that are equal in the first step (pages and tokens, say) to be always equal.
    steps = [random_step(device) for _ in range(50)]
    steps.sort(key=sizes_differ, reverse=True)
    assert sizes_differ(steps[0])
    with torch._dynamo.config.patch(error_on_recompile=False):
        counter = torch._dynamo.utils.counters
        counter.clear()
        for x in steps:
            out, lse = compiled(*x.tensors, x.lengths["seqused_k"], x.lengths["block_table"])
            assert_matches_reference(x, out, lse)
        assert 1 <= counter["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("planned", ["inside", "outside"])
def test_compile_takes_any_number_of_sequences_with_a_plan(device, seed, planned):
    max_total_q = 400

    def plan_of(q, k, cu_seqlens_q, seqused_k):
        heads = dict(num_heads_q=q.shape[1], num_heads_kv=k.shape[2], head_dim=q.shape[2], dtype=q.dtype)
        return varattn.plan(cu_seqlens_q, seqused_k=seqused_k, max_total_q=max_total_q, causal=True, **heads)

    def step(q, k, v, cu_seqlens_q, seqused_k, block_table, plan):
        plan = plan or plan_of(q, k, cu_seqlens_q, seqused_k)
        options = dict(seqused_k=seqused_k, block_table=block_table, plan=plan, causal=True)
        return varattn.mha_varlen(q * 1, k, v, cu_seqlens_q, **options)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    steps = [random_step(device) for _ in range(20)]
    steps.sort(key=sizes_differ, reverse=True)
    assert len({x.cu_seqlens_q.shape for x in steps}) > 2
    counter = torch._dynamo.utils.counters
    counter.clear()
    for x in steps:
        lengths = x.lengths["seqused_k"], x.lengths["block_table"]
        plan = plan_of(x.q, x.k, x.cu_seqlens_q, lengths[0]) if planned == "outside" else None
        assert torch.equal(compiled(*x.tensors, *lengths, plan), step(*x.tensors, *lengths, plan))
    assert 1 <= counter["stats"]["unique_graphs"] <= 2
    other = steps[0]
    plan = plan_of(other.q, other.k, offsets([1] * 12, device), int32([5] * 12, device))
    with pytest.raises(Exception, match=r"max_seqs: got 12") if device == "cpu" else nullcontext():
        compiled(*other.tensors, other.lengths["seqused_k"], other.lengths["block_table"], plan)
        assert plan.status() & 64  # kStatusForeignPlan


def test_compile_plans_inside_the_graph(device, seed):
    def step(q, k, v, cu_seqlens_q, seqused_k, block_table):
        plan = varattn.plan(
            cu_seqlens_q,
            seqused_k=seqused_k,
            max_total_q=q.shape[0],
            num_heads_q=q.shape[1],
            num_heads_kv=k.shape[2],
            head_dim=q.shape[2],
            dtype=q.dtype,
            causal=True,
        )
        options = dict(seqused_k=seqused_k, block_table=block_table, plan=plan, causal=True)
        out = varattn.mha_varlen(q, k, v, cu_seqlens_q, **options)
        return varattn.mha_varlen(out, k, v, cu_seqlens_q, **options)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for _ in range(5):
        x = random_step(device)
        arguments = (*x.tensors, x.lengths["seqused_k"], x.lengths["block_table"])
        assert torch.equal(compiled(*arguments), step(*arguments))


def test_compile_takes_plan_workspace_and_out(device, seed):
    x = random_step(device)
    plan, workspace = make_plan(x), workspace_for(x)
    want, want_lse = run(x)

    def step(q, k, v, cu_seqlens_q, out, lse):
        options = dict(**x.lengths, plan=plan, workspace=workspace, causal=True)
        varattn.mha_varlen(q, k, v, cu_seqlens_q, **options, out=out, lse=lse)
        again = varattn.mha_varlen(q, k, v, cu_seqlens_q, **options)
        return out - again

    torch._dynamo.reset()
    out, lse = torch.full_like(want, torch.nan), torch.full_like(want_lse, torch.nan)
    difference = torch.compile(step, fullgraph=True)(*x.tensors, out, lse)
    assert torch.equal(out, want) and torch.equal(lse, want_lse) and not difference.any()


@pytest.mark.parametrize("name", ["q", "k", "v", "sinks"])
def test_backward_is_refused(device, name):
    x = small_inputs(device, sinks=torch.float32)
    tensors = dict(zip("qkv", x.tensors, strict=False), sinks=x.math["sinks"])
    tensors[name].requires_grad_()
    for call in (varattn.mha_varlen, OPS.mha_varlen):
        result = call(*x.tensors, **x.lengths, **x.math)
        out = result[0] if isinstance(result, tuple) else result
        assert out.requires_grad
        with pytest.raises(NotImplementedError, match=r"mha_varlen: backward: varattn computes no gradients"):
            out.float().sum().backward()
    with torch.no_grad():
        assert not varattn.mha_varlen(*x.tensors, **x.lengths, **x.math).requires_grad


def test_out_of_inputs_that_require_grad_is_refused(device):
    x = small_inputs(device)
    out = torch.empty_like(x.q)
    x.q.requires_grad_()
    with pytest.raises(NotImplementedError, match=r"mha_varlen.out: backward"):
        varattn.mha_varlen(*x.tensors, **x.lengths, out=out)
