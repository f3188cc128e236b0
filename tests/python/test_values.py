"""What the contracts promise of values: strides without copies, poison, padding, empties, extremes, determinism."""

import itertools
import os
import random

import pytest
import torch
from cases import (
    INVARIANCE,
    Case,
    Inputs,
    assert_matches_reference,
    dtypes_of,
    int32,
    make_inputs,
    make_plan,
    offsets,
    random_case,
    reference,
    run,
)

import varattn

# ---- Strides ---------------------------------------------------------------------------------------------------------


def test_q_sliced_from_fused_qkv_gives_the_same_bits(device, seed):
    lens, heads_q, heads_kv, dim = [5, 1, 33], 6, 2, 64
    fused = torch.randn(sum(lens), heads_q + 2 * heads_kv, dim, device=device).to(torch.bfloat16)
    q, k, v = fused.split([heads_q, heads_kv, heads_kv], dim=1)
    options = dict(cu_seqlens_k=offsets(lens, device), causal=True, return_lse=True)
    cu = offsets(lens, device)
    want = varattn.mha_varlen(q.contiguous(), k.contiguous(), v.contiguous(), cu, **options)
    got = varattn.mha_varlen(q, k, v, cu, **options)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_out_and_lse_take_strides_and_nothing_else_is_written(device, seed):
    x = make_inputs(Case([5, 1, 33], [50, 1, 33], q_padding=2), device)
    want, want_lse = run(x)
    room = torch.full((x.case.total_q + 1, 6, 72), 7.0, dtype=want.dtype, device=device)
    room_lse = torch.full((8, x.case.total_q + 3), 7.0, device=device)
    out, lse = room[:-1, 1:5, :64], room_lse[::2, :-3]
    run(x, out=out, lse=lse)
    assert torch.equal(out, want) and torch.equal(lse, want_lse)
    out.fill_(7), lse.fill_(7)
    assert (room == 7).all() and (room_lse == 7).all()


def test_head_major_out_gives_the_same_bits(device, seed):
    x = make_inputs(Case([5, 1, 33], [50, 1, 33]), device)
    out = torch.empty(4, x.case.total_q, 64, dtype=x.q.dtype, device=device).transpose(0, 1)
    want, _ = run(x)
    assert torch.equal(run(x, out=out)[0], want)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("page_size", [1, 16, 20, 32, 128])
def test_cache_layouts_give_the_same_bits(device, seed, page_size, head_dim):
    case = Case([7, 1, 40], [90, 400, 3], layout="nhd", page_size=page_size, head_dim=head_dim, head_dim_v=head_dim)
    x = make_inputs(case, device)
    want = run(x)
    as_hnd = lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    by_layer = lambda t: torch.stack([t, t * 0], dim=1)[:, 0]  # noqa: E731 (pages of two layers in turn)

    def apart(rows):  # between pages
        return lambda t: torch.nn.functional.pad(t, (0, 0, 0, 0, 0, rows), value=torch.nan)[:, : t.shape[1]]

    for view in (as_hnd, by_layer, apart(4), apart(8)):
        k, v = view(x.k), view(x.v)
        assert k.stride() != x.k.stride() or page_size == 1
        got = run(Inputs(x.case, x.q, k, v, x.cu_seqlens_q, x.lengths, x.math))
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_sizes_of_one_may_have_any_stride(device, seed):
    """One token, one KV head, one page of one row: their strides mean nothing."""
    x = make_inputs(Case([1], [1], num_heads_q=1, num_heads_kv=1, page_size=1), device)
    x = Inputs(x.case, x.q, x.k[: int(x.lengths["block_table"][0, 0]) + 1], x.v, x.cu_seqlens_q, x.lengths, x.math)
    page = x.lengths["block_table"][0, :1].long()
    k, v = x.k[page], x.v[page]
    lengths = dict(seqused_k=x.lengths["seqused_k"], block_table=int32([[0]], device))
    odd = lambda t: t.as_strided(t.shape, (3,) * (t.dim() - 1) + (1,))  # noqa: E731
    options = dict(causal=True, return_lse=True, **lengths)
    want = varattn.mha_varlen(x.q, k, v, x.cu_seqlens_q, **options)
    got = varattn.mha_varlen(odd(x.q), odd(k), odd(v), x.cu_seqlens_q, **options, out=odd(torch.empty_like(x.q)))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    assert torch.equal(want[0], v[0].to(want[0].dtype))

    k, v = (torch.randn(1, 1, 128, dtype=x.q.dtype, device=device) for _ in "kv")
    lengths = dict(cu_seqlens_k=int32([0, 1], device))
    out = varattn.mha_varlen(odd(k), odd(k), odd(v), int32([0, 1], device), **lengths, out=odd(torch.empty_like(v)))
    assert torch.equal(out, v)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_broadcast_k_and_v_are_read_as_they_are(device, seed, head_dim):
    """Stride 0: every page is the same one."""
    x = make_inputs(Case([3], [40], page_size=8, head_dim=head_dim, head_dim_v=head_dim), device)
    page_k, page_v = torch.randn_like(x.k[:1]), torch.randn_like(x.v[:1])
    k, v = page_k.expand(9, -1, -1, -1), page_v.expand(9, -1, -1, -1)
    view = Inputs(x.case, x.q, k, v, x.cu_seqlens_q, x.lengths | dict(block_table=int32([[0, 3, 5, 8, 8]], device)), {})
    assert_matches_reference(view, *run(view))


# ---- Poison ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_poison_gives_the_bits_of_zeros(device, seed, poison):
    """Slots past the length, pages and rows that no sequence has: what lies there can't be seen."""
    for _ in range(25):
        case, results, at = random_case(device), [], random.randrange(1 << 31)
        for fill in (0.0, poison):
            random.seed(at)
            torch.manual_seed(at)
            results.append(run(make_inputs(case, device, fill)))
        (want, want_lse), (got, got_lse) = results
        assert torch.equal(got, want) and torch.equal(got_lse, want_lse), case


@pytest.mark.parametrize("layout", ["packed", "nhd"])
@pytest.mark.parametrize("window", [0, 1, 40, 130])
def test_keys_out_of_the_window_may_be_poison(device, seed, layout, window):
    """An engine frees the pages that no query sees any more."""
    q_lens, kv_lens = [1, 3, 20, 70], [900, 333, 20, 500]
    case = Case(q_lens, kv_lens, layout=layout, window_size=(window, 0), page_size=16)
    x = make_inputs(case, device)
    want = run(x)
    for i, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens, strict=True)):
        for key in range(max(0, kv_len - q_len - window)):
            if layout == "packed":
                x.k[sum(kv_lens[:i]) + key] = x.v[sum(kv_lens[:i]) + key] = torch.nan
            else:
                page = x.lengths["block_table"][i, key // 16]
                x.k[page, key % 16] = x.v[page, key % 16] = torch.nan
    got = run(x)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("page_size", [None, 16, 128])
def test_sequences_of_nan_keep_to_themselves(device, seed, page_size, head_dim):
    """Memory on the chip is used by one sequence after another, and their last blocks fill it only in part."""
    q_lens = [random.choice([1, 1, 4, 50]) for _ in range(300)]
    kv_lens = [random.randint(n, 300) for n in q_lens]
    layout = "packed" if page_size is None else "nhd"
    case = Case(q_lens, kv_lens, layout=layout, page_size=page_size or 16, head_dim=head_dim, head_dim_v=head_dim)
    x = make_inputs(case, device)
    want = run(x)
    first_key, is_good = 0, torch.ones(case.total_q, dtype=torch.bool)
    for i, kv_len in enumerate(kv_lens):
        if i % 3 == 0:
            is_good[sum(q_lens[:i]) : sum(q_lens[: i + 1])] = False
            at = slice(first_key, first_key + kv_len)
            if layout == "nhd":
                at = x.lengths["block_table"][i, : -(-kv_len // page_size)].long()
            x.k[at] = x.v[at] = torch.nan
        first_key += kv_len
    got = run(x)
    is_good = is_good.to(device)
    assert torch.equal(got[0][is_good], want[0][is_good]) and torch.equal(got[1][:, is_good], want[1][:, is_good])
    assert got[0][~is_good].isnan().all()


def test_wild_page_ids_read_as_zeros_and_set_the_status(device, seed):
    x = make_inputs(Case([9, 2], [100, 50], page_size=8), device)
    x.lengths["block_table"][0, 3] = 2**31 - 1
    x.lengths["block_table"][1, 0] = -5
    plan = make_plan(x)
    out, lse = varattn.mha_varlen(*x.tensors, **x.lengths, plan=plan, causal=True, return_lse=True)
    assert_matches_reference(x, out, lse)
    with pytest.raises(varattn.PlanError, match="block_table: a page id"):
        varattn.check(plan)


@pytest.mark.parametrize("options", INVARIANCE, ids=str)
@pytest.mark.parametrize("layout", ["packed", "nhd"])
def test_keys_past_the_end_are_absent_and_set_the_status(device, seed, layout, options):
    for first, there in ((100, 72), (9000, 5000), (9000, 4096)):
        x = make_inputs(Case([9, 2], [first, 50], layout=layout, page_size=8, **options), device)
        if layout == "packed":
            x.k, x.v = x.k[: first + 20], x.v[: first + 20]  # of the second sequence, 20 keys
        else:
            x.lengths["block_table"] = x.lengths["block_table"][:, : there // 8]
        plan = make_plan(x)
        out, lse = varattn.mha_varlen(*x.tensors, **x.lengths, plan=plan, **x.case.shared_options(), return_lse=True)
        assert_matches_reference(x, out, lse)
        with pytest.raises(varattn.PlanError, match="keys past the end"):
            varattn.check(plan)


@pytest.mark.parametrize("options", INVARIANCE, ids=str)
def test_hostile_lengths_are_clamped_and_stay_in_bounds(device, seed, options):
    """Lengths that no allocator made: the result is that of the clamped ones, and a status, never a fault."""
    wild = [-(2**31), -1, 0, 1, 5, 40, 10**6, 2**31 - 1]
    for _ in range(60):
        layout = random.choice(["packed", "packed_used", "nhd"])
        x = make_inputs(Case([5, 1, 20], [50, 60, 20], layout=layout, **options), device, poison=0.0)
        for t in (x.cu_seqlens_q, *x.lengths.values()):
            if random.random() < 0.5:
                t.view(-1)[random.randrange(t.numel())] = random.choice(wild)
        plan = make_plan(x)
        out, lse = varattn.mha_varlen(*x.tensors, **x.lengths, plan=plan, **x.case.shared_options(), return_lse=True)
        try:
            varattn.check(plan)
        except varattn.PlanError:
            pass
        assert_matches_reference(x, out, lse)


# ---- Padding and empties ---------------------------------------------------------------------------------------------


def test_rows_of_no_sequence_are_zero_and_minus_inf(device, seed):
    """Rows before the first offset and past the last; the last offset may be repeated."""
    x = make_inputs(Case([4, 3, 0, 0], [9, 40, 0, 0], q_padding=5), device)
    x.cu_seqlens_q = int32([2, 4, 7, 7, 7], device)
    x.q.nan_to_num_(0.5)
    out, lse = run(x)
    padding = [0, 1, *range(7, 12)]
    assert (out[padding] == 0).all() and (lse[:, padding] == -torch.inf).all()
    assert_matches_reference(x, out, lse)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_rows_of_no_sequence_become_zero_whatever_they_held(device, seed, head_dim):
    """Rows that are zero already may be left alone; one stray element, even -0.0, may not."""
    long = 4000 if device == "cuda" else 100  # so long that there is time to look at rows before they are written
    heads = dict(num_heads_q=random.choice([4, 10, 32]), head_dim=head_dim, head_dim_v=head_dim)
    x = make_inputs(Case([1] * 9, [long] * 9, **heads, q_padding=700), device)
    want, want_lse = run(x)
    out, lse = torch.zeros_like(want), torch.zeros_like(want_lse)
    for _ in range(4):
        flat = out[9:].flatten()
        for value in (1.0, -0.0, torch.nan):
            flat[torch.randint(flat.numel(), (100,), device=device)] = value
        out[9:] = flat.view_as(out[9:])
        run(x, out=out, lse=lse)
        assert (out[9:].view(torch.int16) == 0).all() and (lse[:, 9:] == -torch.inf).all()
        assert torch.equal(out[:9], want[:9]) and torch.equal(lse[:, :9], want_lse[:, :9])


def test_leave_padding_leaves_rows_alone(device, seed):
    x = make_inputs(Case([4, 3], [9, 40], q_padding=5), device)
    want, want_lse = run(x)
    out, lse = torch.full_like(want, 7), torch.full_like(want_lse, 7)
    run(x, out=out, lse=lse, leave_padding=True)
    assert torch.equal(out[:7], want[:7]) and torch.equal(lse[:, :7], want_lse[:, :7])
    assert (out[7:] == 7).all() and (lse[:, 7:] == 7).all()


EMPTY = [
    Case([], []),
    Case([], [], q_padding=3),
    Case([0], [0]),
    Case([0, 0, 0], [0, 5, 0], q_padding=2),
    Case([3], [0]),
    Case([9, 1], [4, 0]),
    Case([9], [4], causal=False),
    Case([9, 2], [4, 30], causal=False, window_size=(0, 0)),
    Case([5], [100], causal=False, window_size=(2, 0)),
]


@pytest.mark.parametrize("layout", ["packed", "packed_used", "nhd"])
@pytest.mark.parametrize("index", range(len(EMPTY)))
@pytest.mark.parametrize("sinks", [None, torch.float32])
def test_empty_attention(device, seed, index, layout, sinks):
    case = Case(**{**EMPTY[index].__dict__, "layout": layout, "sinks": sinks})
    x = make_inputs(case, device)
    for give_plan in (True, False):
        case.give_plan = give_plan
        out, lse = run(x)
        assert_matches_reference(x, out, lse)
        if sinks is None:
            assert (out[lse.T.isinf()] == 0).all()


def test_caches_without_any_key(device):
    q = torch.randn(3, 4, 64, device=device).to(torch.bfloat16)
    cu, none = offsets([1, 2], device), int32([0, 0], device)
    packed = torch.empty(0, 2, 64, dtype=q.dtype, device=device)
    paged = torch.empty(0, 16, 2, 64, dtype=q.dtype, device=device)
    table = torch.empty(2, 0, dtype=torch.int32, device=device)
    for k, lengths in (
        (packed, dict(cu_seqlens_k=offsets([0, 0], device))),
        (paged, dict(seqused_k=none, block_table=table)),
        (paged, dict(seqused_k=int32([5, 20], device), block_table=int32([[0, -1], [0, 7]], device))),
    ):
        out, lse = varattn.mha_varlen(q, k, k, cu, **lengths, return_lse=True)
        assert (out == 0).all() and (lse == -torch.inf).all()
        want, want_lse = varattn.reference.mha_varlen(q, k, k, cu, **lengths)
        assert torch.equal(out.double(), want) and torch.equal(lse.double(), want_lse)


def test_reference_takes_no_keys_that_no_row_sees(seed):
    x = make_inputs(Case([3, 20], [200, 90], window_size=(10, 0), causal=False), "cpu")
    want, want_lse = reference(x)
    for t in (x.k, x.v):  # pages that the window has left behind
        t[x.lengths["block_table"][0, :11].long()] = torch.nan
    got, got_lse = reference(x)
    assert torch.equal(got, want) and torch.equal(got_lse, want_lse) and not want.isnan().any()


# ---- Extremes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_seqs", [0, 1, 991, 992, 993, 1024, 4096])
def test_batch_sizes_with_one_long_sequence(device, seed, num_seqs):
    q_lens = [random.choice([1, 1, 1, 2]) for _ in range(num_seqs)]
    kv_lens = [random.randint(n, 20) for n in q_lens]
    if num_seqs:
        kv_lens[random.randrange(num_seqs)] = 30000
    case = Case(q_lens, kv_lens, num_heads_q=2, num_heads_kv=1, page_size=64)
    x = make_inputs(case, device)
    assert_matches_reference(x, *run(x))
    if num_seqs:
        assert make_plan(x).items()["num_splits"].max() > 1  # the long one, whatever the batch


@pytest.mark.parametrize("group", [*range(1, 17), 32, 64, 128])
def test_group_sizes(device, seed, group):
    x = make_inputs(Case([1, 4, 30], [300, 77, 30], num_heads_q=group, num_heads_kv=1), device)
    assert_matches_reference(x, *run(x))


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("page_size", [1, 2, 3, 8, 16, 48, 64, 100, 128, 256])
def test_page_sizes(device, seed, page_size, head_dim):
    case = Case([1, 4, 30], [700, 257, 30], page_size=page_size, head_dim=head_dim, head_dim_v=head_dim)
    x = make_inputs(case, device)
    assert_matches_reference(x, *run(x))


@pytest.mark.parametrize("head_dim", range(8, 257, 8))
def test_every_head_dim(device, seed, head_dim):
    for head_dim_v in (head_dim, 264 - head_dim):
        x = make_inputs(Case([1, 20], [300, 40], head_dim=head_dim, head_dim_v=head_dim_v, causal=True), device)
        assert_matches_reference(x, *run(x))


def test_large_scores_do_not_overflow(device, seed):
    for dtype in dtypes_of(device):
        x = make_inputs(Case([3, 20], [300, 40], dtype=dtype, softmax_scale=4.0), device)
        out, lse = run(x)
        want, want_lse = reference(x)
        assert out.isfinite().all()
        torch.testing.assert_close(lse.double(), want_lse, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(out.double(), want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_scores_that_rise_block_by_block(device, seed, head_dim):
    """By up to 400 from one end of the keys to the other, either way and not for every row: whatever a softmax takes as
    the reference of its exponentials in one block is far too small in the next. Decodes have 2, 6 and 14 rows."""
    for dtype in (torch.bfloat16, torch.float16):  # float32 would show the rounding of such scores
        case = Case(
            [40, 300, 64, 1, 3, 7],
            [2000, 900, 64, 1500, 700, 1100],
            head_dim=head_dim,
            head_dim_v=head_dim,
            dtype=dtype,
            layout="packed",
        )
        x = make_inputs(case, device)
        begin = x.lengths["cu_seqlens_k"].tolist()
        for first, end in itertools.pairwise(begin):
            x.k[first:end, :, 0] = torch.linspace(400, 0, end - first, device=device)[:, None].to(dtype)
        steps = torch.tensor([0.0, 2, 8, -8], device=device) * head_dim**0.5 / 8
        x.q[..., 0] = steps[torch.randint(4, x.q.shape[:2], device=device)].to(dtype)
        assert_matches_reference(x, *run(x))


# ---- Bits ------------------------------------------------------------------------------------------------------------


def test_same_inputs_and_plan_give_the_same_bits(device, seed):
    for _ in range(10):
        x = make_inputs(random_case(device), device)
        first = run(x)
        for _ in range(5):
            again = run(x)
            assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])


def one_of(x, i, rows=None):
    """Sequence i of a batch as a batch of its own; `rows`: only its first rows, against the keys that they see."""
    begin, end = x.cu_seqlens_q[i : i + 2].tolist()
    used = x.lengths["seqused_k"][i : i + 1]
    if rows is not None:
        used = used - (end - begin) + rows
        end = begin + rows
    lengths = dict(seqused_k=used, block_table=x.lengths["block_table"][i : i + 1])
    case = Case(**{**x.case.__dict__, "q_lens": [end - begin], "kv_lens": used.tolist(), "q_padding": 0})
    return Inputs(case, x.q[begin:end], x.k, x.v, offsets([end - begin], x.q.device), lengths, x.math)


# Around a segment, which is 4,096 keys (csrc/core/layout.h), and beyond.
LONG = [4095, 4096, 4097, 9000, 12288, 20000]


@pytest.mark.parametrize("num_neighbours", [1, 7, 300])
def test_batch_invariant_bits_do_not_depend_on_neighbours(device, seed, num_neighbours):
    q_lens = [random.choice([1, 1, 3, 90]) for _ in range(num_neighbours)]
    kv_lens = [n + random.randint(0, 150) for n in q_lens]
    kv_lens[0] = 3000
    for head_dim in (64, 128):
        case = Case(q_lens, kv_lens, num_heads_q=8, head_dim=head_dim, head_dim_v=head_dim, batch_invariant=True)
        x = make_inputs(case, device)
        out, lse = run(x)
        for i in {0, num_neighbours - 1, random.randrange(num_neighbours)}:
            rows = slice(*x.cu_seqlens_q[i : i + 2].tolist())
            alone, alone_lse = run(one_of(x, i))
            assert torch.equal(alone, out[rows]) and torch.equal(alone_lse, lse[:, rows])


def test_batch_invariant_bits_do_not_depend_on_chunks(device, seed):
    for group, num_splits in ((1, 0), (4, 0), (5, 0), (1, 8), (4, 64), (5, 3)):
        kv_len = random.choice(LONG) if num_splits else 1000
        case = Case([200], [kv_len], num_heads_q=2 * group, num_splits=num_splits, batch_invariant=True)
        x = make_inputs(case, device)
        out, lse = run(x)
        for rows in (1, 2, 63, 64, 100, 199):
            part, part_lse = run(one_of(x, 0, rows))
            assert torch.equal(part, out[:rows]) and torch.equal(part_lse, lse[:, :rows])


@pytest.mark.parametrize("head_dim", [64, 128, 256, 72])
def test_batch_invariant_bits_do_not_depend_on_splits(device, seed, head_dim):
    for _ in range(3):
        num_seqs = random.choice([1, 2, 5])
        q_lens = [random.choice([1, 1, 2, 16, 17, 150]) for _ in range(num_seqs)]
        kv_lens = [max(n, random.choice([n, *LONG, random.randint(4000, 20000)])) for n in q_lens]
        case = Case(
            q_lens,
            kv_lens,
            num_heads_q=random.choice([2, 6]),
            head_dim=head_dim,
            head_dim_v=head_dim,
            dtype=random.choice([torch.bfloat16, torch.float16]),
            page_size=random.choice([16, 20, 128]),
            causal=random.random() < 0.7,
            window_size=random.choice([(-1, -1), (5000, -1), (100, 0)]),
            softcap=random.choice([0.0, 5.0]),
            sinks=random.choice([None, torch.float32]),
            num_splits=64,
            batch_invariant=True,
        )
        x = make_inputs(case, device)
        want = run(x)
        assert_matches_reference(x, *want)
        for num_splits in (2, 3, 16, 256):
            got = run(x, plan=make_plan(x, num_splits=num_splits), num_splits=num_splits)
            assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_batch_invariant_long_sequences_are_split_if_asked(device, seed):
    x = make_inputs(Case([1], [60000], num_heads_q=8, batch_invariant=True), device)
    assert make_plan(x).header()["num_split_tiles"] == 0
    is_portable = os.environ.get("VARATTN_KERNEL", "").startswith("portable")
    can_split = device == "cuda" and torch.cuda.get_device_capability()[0] == 9 and not is_portable
    assert make_plan(x, num_splits=16).header()["num_split_tiles"] == can_split


# Many tiles of several segments, whole and side by side, against the same sequence alone, where its tiles are split.
@pytest.mark.parametrize(("num_seqs", "q_len"), [(12, 300), (40, 1)])
def test_batch_invariant_bits_of_long_sequences_do_not_depend_on_neighbours(device, seed, num_seqs, q_len):
    q_lens = [random.choice([q_len, q_len, 3, 90]) for _ in range(num_seqs)]
    kv_lens = [n + random.choice([0, 100, *LONG[:4]]) for n in q_lens]
    q_lens[0], kv_lens[0] = q_len, 9000
    for head_dim in (64, 128):
        case = Case(
            q_lens, kv_lens, num_heads_q=8, head_dim=head_dim, head_dim_v=head_dim, num_splits=32, batch_invariant=True
        )
        x = make_inputs(case, device)
        out, lse = run(x)
        for i in range(0, num_seqs, 5):
            rows = slice(*x.cu_seqlens_q[i : i + 2].tolist())
            alone, alone_lse = run(one_of(x, i))
            assert torch.equal(alone, out[rows]) and torch.equal(alone_lse, lse[:, rows])


def test_sm_margin_changes_no_bit_of_batch_invariant_results(device, seed):
    for num_splits in (0, 16):
        case = Case([20, 1, 1], [100, 9000, 9], num_splits=num_splits, batch_invariant=True)
        x = make_inputs(case, device)
        want = run(x)
        for sm_margin in (1, 7):
            got = run(x, plan=make_plan(x, sm_margin=sm_margin), sm_margin=sm_margin)
            assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_windows_and_causal_agree_where_they_mean_the_same(device, seed):
    x = make_inputs(Case([20, 1, 7], [100, 3000, 7]), device)
    want = run(x)
    for options in (
        dict(causal=False, window_size=(-1, 0)),
        dict(causal=True, window_size=(3000, 9)),
        dict(causal=False, window_size=(2**30, 0)),
    ):
        got = run(x, plan=None, **options)
        assert torch.allclose(got[0].float(), want[0].float(), atol=1e-2) and torch.allclose(got[1], want[1], atol=1e-4)
