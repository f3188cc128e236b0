"""The planner op against the host planner, whose plans C++ tests prove: random batches of every size, also hostile."""

import os

import numpy as np
import pytest
import torch

import varattn

host = pytest.importorskip(
    "varattn.host", reason="the pybind11 module is for one version of Python", exc_type=ImportError
)

SIZES = (0, 1, 2, 3, 16, 31, 33, 132, 300, 700, 991, 992, 993, 1024, 1025, 1600, 4096)
WILD = (-1, -(2**31), 2**31 - 1, 1 << 29, (1 << 29) + 1, 0, 12345)
CASES = int(120 * float(os.environ.get("VARATTN_FUZZ_FACTOR", "1")))


def assert_same_plan(lengths, options, device):
    tensors = {name: torch.from_numpy(x).to(device) for name, x in lengths.items()}
    plan = varattn.plan(**tensors, **options, dtype=torch.bfloat16)
    want = host.plan(
        **{name: x.tolist() for name, x in lengths.items()}, **options, dtype="bfloat16", device=host.device_of(device)
    )
    used = 256 + want.items.nbytes  # scratch follows
    got = plan.buffer[:used].cpu().numpy()
    different = np.flatnonzero(got != np.frombuffer(want.buffer, np.uint8, used))
    if len(different):
        at = int(different[0])
        item = (at - 256) // 64
        where = (
            f"item {item}: {plan.items()[item]}, not {want.items[item]}" if at >= 256 else f"header: {plan.header()}"
        )
        raise AssertionError(f"byte {at} differs; {where}; {options}; {len(lengths['cu_seqlens_q']) - 1} sequences")
    return want


def offsets(rng, lengths):
    return np.concatenate(([rng.choice([0, 0, 7])], lengths)).cumsum().astype(np.int32)


def random_batch(rng):
    n = int(rng.choice(SIZES)) if rng.random() < 0.7 else int(rng.integers(0, 300))
    prefills = rng.choice([0.0, 0.0, 0.05, 0.3, 1.0])
    q = np.where(
        rng.random(n) < prefills, rng.integers(0, rng.choice([20, 400]), n), rng.integers(0, rng.choice([2, 5]), n)
    )
    q[rng.random(n) < rng.choice([0, 0.2])] = 0
    kv = rng.integers(0, rng.choice([2, 100, 5000, 200000]), n)
    if n > 0 and rng.random() < 0.3:
        kv[rng.integers(n)] = rng.choice([100000, 1 << 20])
    lengths = dict(cu_seqlens_q=offsets(rng, q))
    layout = rng.choice(["paged", "packed", "packed_used"])
    if layout != "paged":
        lengths["cu_seqlens_k"] = offsets(rng, np.minimum(kv, 2**31 // max(n, 1) - 10))
    if layout != "packed":
        lengths["seqused_k"] = (kv // rng.choice([1, 1, 2])).astype(np.int32)
    if rng.random() < 0.25:
        for x in lengths.values():
            for _ in range(int(rng.choice([0, 1, 5]))):
                if len(x):
                    x[rng.integers(len(x))] = rng.choice(WILD)
    group = int(rng.choice([1, 2, 3, 4, 5, 7, 8, 16, 64, 128]))
    heads_kv = int(rng.choice([1, 2, 3, 8, 40]))
    causal = bool(rng.random() < 0.6)
    window = (int(rng.choice([-1, 0, 100, 5000])), -1 if causal else int(rng.choice([-1, 0, 300])))
    options = dict(
        max_total_q=int(max(0, min(int(q.sum()) + rng.choice([0, 0, 30, -1]), 1 << 20))),
        num_heads_q=heads_kv * group,
        num_heads_kv=heads_kv,
        head_dim=int(rng.choice([64, 128, 256])),
        causal=causal,
        window_size=window if rng.random() < 0.4 else (-1, -1),
        num_splits=int(rng.choice([0, 0, 1, 2, 7, 32, 256])),
        batch_invariant=bool(rng.random() < 0.15),
        sm_margin=int(rng.choice([0, 0, 5])),
    )
    return lengths, options


@pytest.mark.parametrize("part", range(10))
def test_random_batches(device, seed, part):
    rng = np.random.default_rng(seed + part)
    split = hostile = 0
    cases = CASES if device == "cuda" else CASES // 4
    for _ in range(cases):
        plan = assert_same_plan(*random_batch(rng), device)
        split += int(plan.header["num_split_tiles"]) > 0
        hostile += int(plan.header["status"]) != 0
    assert split + hostile > cases // 20


@pytest.mark.parametrize("size", [0, 1, 991, 992, 993, 1024, 4096, 32768])
@pytest.mark.parametrize("prefill_every", [0, 9])
def test_one_long_among_many(device, size, prefill_every):
    q = np.ones(size, np.int32)
    kv = np.full(size, 50, np.int32)
    if prefill_every:
        q[::prefill_every] = 30
    if size:
        q[size // 2], kv[size // 2] = 1, 1 << 20
    lengths = dict(cu_seqlens_q=np.concatenate(([0], q)).cumsum().astype(np.int32), seqused_k=kv)
    options = dict(max_total_q=int(q.sum()), num_heads_q=8, num_heads_kv=1, head_dim=128, causal=True)
    plan = assert_same_plan(lengths, options, device)
    assert plan.header["num_items"] >= size
    assert plan.header["num_split_tiles"] >= min(size, 1)
    longest = plan.items[plan.items["seq"] == size // 2]
    assert (longest["num_splits"] > 1).all()
