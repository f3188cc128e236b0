"""Every rejected argument: a message names the function, the argument, what it got and what it takes. Nothing runs."""

import re

import pytest
import torch
from cases import Case, int32, make_inputs, offsets

import varattn

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def base(device, layout="nhd") -> dict:
    """A good call: 2 sequences, 6 rows, 4 and 2 heads of 64."""
    x = make_inputs(Case([5, 1], [9, 40], layout=layout), device)
    q, k, v, cu_seqlens_q = x.tensors
    return dict(q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, **x.lengths)


def zeros(*shape, dtype=BF16, device):
    return torch.zeros(*shape, dtype=dtype, device=device)


def unaligned(t):
    """The same tensor, 2 bytes off."""
    room = torch.zeros(t.numel() + 8, dtype=t.dtype, device=t.device)
    return room[1 : 1 + t.numel()].view(t.shape).copy_(t)


def with_row_padding(t, elements):
    """Rows (the first dim) further apart by this many elements."""
    room = torch.zeros(t.shape[0], t[0].numel() + elements, dtype=t.dtype, device=t.device)
    return room[:, : t[0].numel()].unflatten(1, t.shape[1:]).copy_(t)


def expanded(t):
    return t[:1].expand_as(t)


# (message, layout, changes of the good call as a function of it and of the device)
REFUSED = [
    # q, k, v
    (
        r"q: got shape \(6, 256\); takes \(total_q, num_heads_q, head_dim\)",
        "nhd",
        lambda c, d: dict(q=c["q"].flatten(1)),
    ),
    (r"q: got int32; takes bfloat16 or float16 .* or float32", "nhd", lambda c, d: dict(q=c["q"].int())),
    (r"q: got float64; takes bfloat16 or float16", "nhd", lambda c, d: dict(q=c["q"].double())),
    (
        r"q: got strides \(256, 1, 4\); takes a last dim of stride 1",
        "nhd",
        lambda c, d: dict(q=zeros(6, 64, 4, device=d).transpose(1, 2)),
    ),
    (r"k: got float16; takes bfloat16, the dtype of q", "nhd", lambda c, d: dict(k=c["k"].half())),
    (r"v: got float16; takes bfloat16, the dtype of q", "nhd", lambda c, d: dict(v=c["v"].half())),
    (
        r"k: got shape \(9, 2, 64\); takes \(num_pages, page_size, num_heads_kv, head_dim\) with block_table",
        "nhd",
        lambda c, d: dict(k=zeros(9, 2, 64, device=d)),
    ),
    (
        r"v: got shape \(9, 2, 64\); takes \(num_pages, page_size, num_heads_kv, head_dim_v\) with block_table",
        "nhd",
        lambda c, d: dict(v=zeros(9, 2, 64, device=d)),
    ),
    (
        r"k: got shape \(3, 16, 2, 64\); takes \(total_k, num_heads_kv, head_dim\) without block_table",
        "packed",
        lambda c, d: dict(k=zeros(3, 16, 2, 64, device=d)),
    ),
    (
        r"v: got shape \(3, 16, 2, 64\); takes \(total_k, num_heads_kv, head_dim_v\) without block_table",
        "packed",
        lambda c, d: dict(v=zeros(3, 16, 2, 64, device=d)),
    ),
    (
        r"k: got shape .*, 128\); takes \(num_pages, page_size, num_heads_kv, head_dim\) = \(\*, \*, \*, 64\)",
        "nhd",
        lambda c, d: dict(k=torch.cat([c["k"]] * 2, -1)),
    ),
    (
        r"k: got shape .*, 128\); takes \(total_k, num_heads_kv, head_dim\) = \(\*, \*, 64\)",
        "packed",
        lambda c, d: dict(k=torch.cat([c["k"]] * 2, -1)),
    ),
    (
        r"v: got shape \(\d+, 17, 2, 64\); takes \(num_pages, page_size, .*, head_dim_v\) = \(\d+, 16, 2, \*\)",
        "nhd",
        lambda c, d: dict(v=zeros(c["v"].shape[0], 17, 2, 64, device=d)),
    ),
    (r"v: got shape \(1, 16, 2, 64\); takes", "nhd", lambda c, d: dict(v=c["v"][:1])),
    (r"v: got shape \(\d+, 16, 1, 64\); takes", "nhd", lambda c, d: dict(v=c["v"][:, :, :1])),
    (
        r"v: got shape \(3, 2, 64\); takes \(total_k, num_heads_kv, head_dim_v\) = \(\d+, 2, \*\)",
        "packed",
        lambda c, d: dict(v=c["v"][:3]),
    ),
    (
        r"k: got shape \(\d+, 0, 2, 64\); takes a page_size of at least 1",
        "nhd",
        lambda c, d: dict(k=c["k"][:, :0], v=c["v"][:, :0]),
    ),
    (r"num_heads_q: got 3; takes a multiple of num_heads_kv = 2", "nhd", lambda c, d: dict(q=c["q"][:, :3])),
    (r"num_heads_kv: got 0; takes 1 to", "nhd", lambda c, d: dict(k=c["k"][:, :, :0], v=c["v"][:, :, :0])),
    (r"num_heads_q: got 0; takes 1 to", "nhd", lambda c, d: dict(q=c["q"][:, :0])),
    (
        r"head_dim: got 60; takes a multiple of 8",
        "nhd",
        lambda c, d: (
            dict(q=zeros(6, 4, 60, device=d), k=zeros(3, 16, 2, 60, device=d), v=zeros(3, 16, 2, 64, device=d))
            if d == "cpu"
            else dict(
                q=zeros(6, 4, 64, device=d)[..., :60],
                k=zeros(3, 16, 2, 64, device=d)[..., :60],
                v=zeros(3, 16, 2, 64, device=d),
            )
        ),
    ),
    (r"head_dim_v: got 0; takes a multiple of 8", "nhd", lambda c, d: dict(v=c["v"][..., :0])),
    (
        r"head_dim: got 520; takes a multiple of 8 up to (256|512)",
        "nhd",
        lambda c, d: dict(
            q=zeros(6, 4, 520, device=d), k=zeros(3, 16, 2, 520, device=d), v=zeros(3, 16, 2, 64, device=d)
        ),
    ),
    (
        r"head_dim_v: got 520; takes",
        "nhd",
        lambda c, d: dict(k=zeros(3, 16, 2, 64, device=d), v=zeros(3, 16, 2, 520, device=d)),
    ),
    # index tensors
    (r"cu_seqlens_q: got int64; takes int32", "nhd", lambda c, d: dict(cu_seqlens_q=c["cu_seqlens_q"].long())),
    (
        r"cu_seqlens_q: got shape \(0,\); takes \(num_seqs \+ 1,\)",
        "nhd",
        lambda c, d: dict(cu_seqlens_q=c["cu_seqlens_q"][:0]),
    ),
    (
        r"cu_seqlens_q: got shape \(1, 3\); takes \(num_seqs \+ 1,\)",
        "nhd",
        lambda c, d: dict(cu_seqlens_q=c["cu_seqlens_q"][None]),
    ),
    (
        r"cu_seqlens_q: got strides \(2,\); takes a last dim of stride 1",
        "nhd",
        lambda c, d: dict(cu_seqlens_q=torch.zeros(6, dtype=torch.int32, device=d)[::2]),
    ),
    (
        r"seqused_k: got None; takes the lengths \(num_seqs,\) with block_table",
        "nhd",
        lambda c, d: dict(seqused_k=None),
    ),
    (r"seqused_k: got int64; takes int32", "nhd", lambda c, d: dict(seqused_k=c["seqused_k"].long())),
    (
        r"seqused_k: got shape \(3,\); takes \(num_seqs,\) = \(2,\)",
        "nhd",
        lambda c, d: dict(seqused_k=int32([1, 2, 3], d)),
    ),
    (
        r"seqused_k: got shape \(1,\); takes \(num_seqs,\) = \(2,\)",
        "packed",
        lambda c, d: dict(seqused_k=int32([1], d)),
    ),
    (
        r"cu_seqlens_k: got None; takes the offsets .* or else give block_table",
        "packed",
        lambda c, d: dict(cu_seqlens_k=None),
    ),
    (
        r"cu_seqlens_k: got None; takes the offsets",
        "packed",
        lambda c, d: dict(cu_seqlens_k=None, seqused_k=int32([1, 2], d)),
    ),
    (
        r"cu_seqlens_k: got a tensor; takes None with block_table: lengths are in seqused_k",
        "nhd",
        lambda c, d: dict(cu_seqlens_k=offsets([9, 40], d)),
    ),
    (r"cu_seqlens_k: got int64; takes int32", "packed", lambda c, d: dict(cu_seqlens_k=c["cu_seqlens_k"].long())),
    (
        r"cu_seqlens_k: got shape \(2,\); takes \(num_seqs \+ 1,\) = \(3,\)",
        "packed",
        lambda c, d: dict(cu_seqlens_k=offsets([9], d)),
    ),
    (r"block_table: got int64; takes int32", "nhd", lambda c, d: dict(block_table=c["block_table"].long())),
    (
        r"block_table: got shape \(3, 4\); takes \(num_seqs, max_pages\) = \(2, \*\)",
        "nhd",
        lambda c, d: dict(block_table=torch.zeros(3, 4, dtype=torch.int32, device=d)),
    ),
    (
        r"block_table: got shape \(8,\); takes \(num_seqs, max_pages\)",
        "nhd",
        lambda c, d: dict(block_table=torch.zeros(8, dtype=torch.int32, device=d)),
    ),
    (
        r"block_table: got strides \(1, 2\); takes a last dim of stride 1",
        "nhd",
        lambda c, d: dict(block_table=torch.zeros(4, 2, dtype=torch.int32, device=d).T),
    ),
    # scalars
    (r"window_size: got 3 numbers; takes \(left, right\)", "nhd", lambda c, d: dict(window_size=(1, 2, 3))),
    (r"window_size\[0\]: got -2; takes a number of keys, or -1", "nhd", lambda c, d: dict(window_size=(-2, 0))),
    (r"window_size\[1\]: got -7; takes a number of keys, or -1", "nhd", lambda c, d: dict(window_size=(-1, -7))),
    (r"window_size\[0\]: got 4294967296; takes a number of 32 bits", "nhd", lambda c, d: dict(window_size=(2**32, -1))),
    (r"softmax_scale: got nan; takes a finite number above 0", "nhd", lambda c, d: dict(softmax_scale=float("nan"))),
    (r"softmax_scale: got 0.0+; takes a finite number above 0", "nhd", lambda c, d: dict(softmax_scale=0.0)),
    (r"softmax_scale: got -1.0+; takes a finite number above 0", "nhd", lambda c, d: dict(softmax_scale=-1.0)),
    (r"softcap: got -1.0+; takes a finite number, 0 or above", "nhd", lambda c, d: dict(softcap=-1.0)),
    (r"softcap: got inf; takes a finite number, 0 or above", "nhd", lambda c, d: dict(softcap=float("inf"))),
    (r"num_splits: got -1; takes 0 to 256", "nhd", lambda c, d: dict(num_splits=-1)),
    (r"num_splits: got 257; takes 0 to 256", "nhd", lambda c, d: dict(num_splits=257)),
    (r"num_splits: got 8589934592; takes a number of 32 bits", "nhd", lambda c, d: dict(num_splits=2**33)),
    (r"sm_margin: got -1; takes 0 to", "nhd", lambda c, d: dict(sm_margin=-1)),
    (r"sm_margin: got 100000; takes 0 to", "nhd", lambda c, d: dict(sm_margin=100000)),
    # sinks
    (r"sinks: got float16; takes float32 or bfloat16", "nhd", lambda c, d: dict(sinks=zeros(4, dtype=F16, device=d))),
    (
        r"sinks: got shape \(2,\); takes \(num_heads_q,\) = \(4,\)",
        "nhd",
        lambda c, d: dict(sinks=zeros(2, dtype=F32, device=d)),
    ),
    (
        r"sinks: got strides \(2,\); takes a last dim of stride 1",
        "nhd",
        lambda c, d: dict(sinks=zeros(8, dtype=F32, device=d)[::2]),
    ),
    # outputs
    (
        r"out: got float16; takes bfloat16, the dtype of q",
        "nhd",
        lambda c, d: dict(out=zeros(6, 4, 64, dtype=F16, device=d)),
    ),
    (
        r"out: got shape \(7, 4, 64\); takes \(total_q, num_heads_q, head_dim_v\) = \(6, 4, 64\)",
        "nhd",
        lambda c, d: dict(out=zeros(7, 4, 64, device=d)),
    ),
    (
        r"out: got shape \(6, 256\); takes \(total_q, num_heads_q, head_dim_v\)",
        "nhd",
        lambda c, d: dict(out=zeros(6, 256, device=d)),
    ),
    (
        r"out: got strides \(256, 1, 4\); takes a last dim of stride 1",
        "nhd",
        lambda c, d: dict(out=zeros(6, 64, 4, device=d).transpose(1, 2)),
    ),
    (
        r"out: got strides \(0, 64, 1\); takes elements that do not overlap",
        "nhd",
        lambda c, d: dict(out=expanded(zeros(6, 4, 64, device=d))),
    ),
    (
        r"out: got strides \(64, 64, 1\); takes elements that do not overlap",
        "nhd",
        lambda c, d: dict(out=zeros(16, 64, device=d).as_strided((6, 4, 64), (64, 64, 1))),
    ),
    (
        r"lse: got bfloat16; takes float32",
        "nhd",
        lambda c, d: dict(out=zeros(6, 4, 64, device=d), lse=zeros(4, 6, device=d)),
    ),
    (
        r"lse: got shape \(6, 4\); takes \(num_heads_q, total_q\) = \(4, 6\)",
        "nhd",
        lambda c, d: dict(out=zeros(6, 4, 64, device=d), lse=zeros(6, 4, dtype=F32, device=d)),
    ),
    (
        r"lse: got strides \(1, 4\); takes a last dim of stride 1",
        "nhd",
        lambda c, d: dict(out=zeros(6, 4, 64, device=d), lse=zeros(6, 4, dtype=F32, device=d).T),
    ),
    (
        r"lse: got strides \(0, 1\); takes elements that do not overlap",
        "nhd",
        lambda c, d: dict(out=zeros(6, 4, 64, device=d), lse=expanded(zeros(4, 6, dtype=F32, device=d))),
    ),
    # buffers
    (
        r"workspace: got 8 bytes; takes at least \d+, which workspace_size\(\) gives",
        "nhd",
        lambda c, d: dict(workspace=zeros(8, dtype=torch.uint8, device=d)),
    ),
    (r"workspace: got float32; takes uint8", "nhd", lambda c, d: dict(workspace=zeros(8, dtype=F32, device=d))),
    (
        r"workspace: got shape \(8, 8\); takes \(bytes,\)",
        "nhd",
        lambda c, d: dict(workspace=zeros(8, 8, dtype=torch.uint8, device=d)),
    ),
    (
        r"workspace: got storage offset 1; takes an address that is a multiple of 16 bytes",
        "nhd",
        lambda c, d: dict(workspace=zeros(1 << 26, dtype=torch.uint8, device=d)[1:]),
    ),
    (
        r"workspace: got strides \(2,\); takes a last dim of stride 1",
        "nhd",
        lambda c, d: dict(workspace=zeros(1 << 27, dtype=torch.uint8, device=d)[::2]),
    ),
]

CUDA_REFUSED = [
    (
        r"q: got storage offset 1; takes an address that is a multiple of 16 bytes",
        "nhd",
        lambda c, d: dict(q=unaligned(c["q"])),
    ),
    (
        r"k: got storage offset 1; takes an address that is a multiple of 16 bytes",
        "nhd",
        lambda c, d: dict(k=unaligned(c["k"])),
    ),
    (
        r"v: got strides .*; takes strides that are multiples of 16 bytes, but the last",
        "nhd",
        lambda c, d: dict(v=with_row_padding(c["v"], 4)),
    ),
    (
        r"out: got strides .*; takes strides that are multiples of 16 bytes, but the last",
        "nhd",
        lambda c, d: dict(out=with_row_padding(zeros(6, 4, 64, device=d), 1)),
    ),
    (
        r"dtype: got float32; takes float16 or bfloat16",
        "nhd",
        lambda c, d: dict(q=c["q"].float(), k=c["k"].float(), v=c["v"].float()),
    ),
    (
        r"head_dim: got 264; takes a multiple of 8 up to 256",
        "nhd",
        lambda c, d: dict(
            q=zeros(6, 4, 264, device=d), k=zeros(3, 16, 2, 264, device=d), v=zeros(3, 16, 2, 64, device=d)
        ),
    ),
    (r"k: got a tensor on cpu; takes one on the device of q, cuda:0", "nhd", lambda c, d: dict(k=c["k"].cpu())),
    (
        r"cu_seqlens_q: got a tensor on cpu; takes one on the device of q",
        "nhd",
        lambda c, d: dict(cu_seqlens_q=c["cu_seqlens_q"].cpu()),
    ),
    (r"seqused_k: got a tensor on cpu; takes", "nhd", lambda c, d: dict(seqused_k=c["seqused_k"].cpu())),
    (r"block_table: got a tensor on cpu; takes", "nhd", lambda c, d: dict(block_table=c["block_table"].cpu())),
    (r"sinks: got a tensor on cpu; takes", "nhd", lambda c, d: dict(sinks=zeros(4, dtype=F32, device="cpu"))),
    (r"out: got a tensor on cpu; takes", "nhd", lambda c, d: dict(out=zeros(6, 4, 64, device="cpu"))),
    (
        r"workspace: got a tensor on cpu; takes",
        "nhd",
        lambda c, d: dict(workspace=zeros(1 << 24, dtype=torch.uint8, device="cpu")),
    ),
]


def assert_refused(function, message, arguments, error=RuntimeError):
    given = {name: t.clone() for name, t in arguments.items() if isinstance(t, torch.Tensor) and name in ("out", "lse")}
    call = getattr(varattn, function)
    with pytest.raises(error) as caught:
        call(**arguments)
    first_line = str(caught.value).splitlines()[0]
    assert re.match(rf"{function}: ({message})", first_line), first_line
    for name, before in given.items():
        assert torch.equal(arguments[name], before), f"{name} was written"


@pytest.mark.parametrize(("message", "layout", "change"), REFUSED)
def test_mha_varlen_refuses(device, message, layout, change):
    call = base(device, layout)
    varattn.mha_varlen(**call)
    assert_refused("mha_varlen", message, call | change(call, device))


@pytest.mark.gpu
@pytest.mark.parametrize(("message", "layout", "change"), CUDA_REFUSED)
def test_mha_varlen_on_cuda_refuses(message, layout, change):
    call = base("cuda", layout)
    varattn.mha_varlen(**call)
    assert_refused("mha_varlen", message, call | change(call, "cuda"))


def test_lse_without_out_is_refused(device):
    call = base(device) | dict(lse=zeros(4, 6, dtype=F32, device=device))
    assert_refused(
        "mha_varlen", r"lse: got a tensor without out; takes None, or a tensor together with out", call, TypeError
    )


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"q: got NoneType; takes a tensor", dict(q=None)),
        (r"k: got int; takes a tensor", dict(k=1)),
        (r"cu_seqlens_q: got list; takes a tensor", dict(cu_seqlens_q=[0, 5, 6])),
        (r"window_size: got 3; takes \(left, right\)", dict(window_size=3)),
        (r"window_size: got None; takes \(left, right\)", dict(window_size=None)),
    ],
)
def test_other_types_are_refused(device, message, change):
    call = base(device)
    assert_refused("mha_varlen", message, call | change, TypeError)
    heads = dict(num_heads_q=4, num_heads_kv=2, head_dim=64, dtype=BF16)
    plan = varattn.plan(call["cu_seqlens_q"], seqused_k=call["seqused_k"], max_total_q=6, **heads)
    assert_refused("mha_varlen", message, call | dict(plan=plan) | change, TypeError)
    if "window_size" in change:
        lengths = dict(seqused_k=call["seqused_k"], max_total_q=6)
        assert_refused("plan", message, dict(cu_seqlens_q=call["cu_seqlens_q"]) | lengths | heads | change, TypeError)


@pytest.mark.parametrize("name", ["sinks", "out"])
def test_numbers_for_tensors_are_refused_by_name(device, name):
    with pytest.raises(RuntimeError, match=rf"varattn::mha_varlen.*argument '{name}'.*float"):
        varattn.mha_varlen(**base(device), **{name: 1.0})


PLAN_REFUSED = [
    (r"cu_seqlens_q: got int64; takes int32", lambda c, d: dict(cu_seqlens_q=c["cu_seqlens_q"].long())),
    (
        r"cu_seqlens_q: got shape \(0,\); takes \(num_seqs \+ 1,\)",
        lambda c, d: dict(cu_seqlens_q=c["cu_seqlens_q"][:0]),
    ),
    (r"cu_seqlens_q: got shape \(1, 3\); takes", lambda c, d: dict(cu_seqlens_q=c["cu_seqlens_q"][None])),
    (r"seqused_k: got None; takes the key lengths .* or else give cu_seqlens_k", lambda c, d: dict(seqused_k=None)),
    (r"seqused_k: got int64; takes int32", lambda c, d: dict(seqused_k=c["seqused_k"].long())),
    (r"seqused_k: got shape \(1,\); takes \(num_seqs,\) = \(2,\)", lambda c, d: dict(seqused_k=c["seqused_k"][:1])),
    (
        r"cu_seqlens_k: got shape \(2,\); takes \(num_seqs \+ 1,\) = \(3,\)",
        lambda c, d: dict(cu_seqlens_k=offsets([1], d)),
    ),
    (r"max_total_q: got -1; takes 0 to", lambda c, d: dict(max_total_q=-1)),
    (r"max_total_q: got 17179869184; takes a number of 32 bits", lambda c, d: dict(max_total_q=2**34)),
    (r"num_heads_q: got 3; takes a multiple of num_heads_kv = 2", lambda c, d: dict(num_heads_q=3)),
    (r"num_heads_q: got 0; takes 1 to", lambda c, d: dict(num_heads_q=0)),
    (r"num_heads_kv: got -2; takes 1 to", lambda c, d: dict(num_heads_kv=-2)),
    (r"head_dim: got 7; takes a multiple of 8", lambda c, d: dict(head_dim=7)),
    (r"head_dim: got 0; takes a multiple of 8", lambda c, d: dict(head_dim=0)),
    (r"head_dim_v: got 0; takes a multiple of 8", lambda c, d: dict(head_dim_v=0)),
    (r"head_dim_v: got 1024; takes", lambda c, d: dict(head_dim_v=1024)),
    (r"dtype: got int32; takes bfloat16 or float16", lambda c, d: dict(dtype=torch.int32)),
    (r"window_size: got 1 numbers; takes \(left, right\)", lambda c, d: dict(window_size=(1,))),
    (r"window_size\[0\]: got -3; takes", lambda c, d: dict(window_size=(-3, 0))),
    (r"num_splits: got 300; takes 0 to 256", lambda c, d: dict(num_splits=300)),
    (r"sm_margin: got 9999; takes 0 to", lambda c, d: dict(sm_margin=9999)),
    (
        r"out: got 16 bytes; takes at least \d+, which plan_size\(\) gives",
        lambda c, d: dict(out=zeros(16, dtype=torch.uint8, device=d)),
    ),
    (r"out: got float32; takes uint8", lambda c, d: dict(out=zeros(16, dtype=F32, device=d))),
]


@pytest.mark.parametrize(("message", "change"), PLAN_REFUSED)
def test_plan_refuses(device, message, change):
    call = dict(
        cu_seqlens_q=offsets([5, 1], device),
        seqused_k=int32([9, 40], device),
        max_total_q=6,
        num_heads_q=4,
        num_heads_kv=2,
        head_dim=64,
        dtype=BF16,
    )
    varattn.plan(**call)
    assert_refused("plan", message, call | change(call, device))


@pytest.mark.parametrize("function", ["plan_size", "workspace_size"])
def test_sizes_refuse(device, function):
    call = dict(max_seqs=2, max_total_q=6, num_heads_q=4, num_heads_kv=2, head_dim=64, dtype=BF16, device=device)
    assert_refused(function, r"max_seqs: got -1; takes 0 to", call | dict(max_seqs=-1))
    assert_refused(function, r"head_dim: got 12; takes a multiple of 8", call | dict(head_dim=12))
    assert_refused(function, r"device: got meta; takes cpu or cuda", call | dict(device="meta"))
    if not torch.cuda.is_available():
        assert_refused(function, r"device: got cuda:1; takes cpu or cuda, where", call | dict(device="cuda:1"))


def test_meta_tensors_give_meta_results():
    call = {name: t.to("meta") for name, t in base("cpu").items()}
    out, lse = varattn.mha_varlen(**call, return_lse=True)
    assert out.is_meta and out.shape == (6, 4, 64) and out.dtype == BF16
    assert lse.is_meta and lse.shape == (4, 6) and lse.dtype == F32


def test_is_supported_never_raises():
    assert varattn.is_supported("cpu") and isinstance(varattn.is_supported(), bool)
    for device in ("cuda", "cuda:99", 0, "meta", "mps", "no such device", 3.5):
        assert isinstance(varattn.is_supported(device), bool)
    assert not varattn.is_supported("cuda:99") and not varattn.is_supported("no such device")
