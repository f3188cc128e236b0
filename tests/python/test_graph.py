"""GraphRunner and plan_many: one captured graph serves every step up to its capacity, with the bits of eager calls."""

import os
import random

import pytest
import torch
from cases import INVARIANCE, OUT_TOLERANCE, int32

import varattn

# Replays of the soak tests: VARATTN_SOAK=100000 for a long run.
SOAK = int(os.environ.get("VARATTN_SOAK", "2000"))
HEADS_Q, HEADS_KV, DIM, PAGE = 8, 2, 64, 16
INT32_MAX = 2**31 - 1


class Engine:
    """Layers with caches and static queries of their own, and a runner over them."""

    def __init__(self, device, *, max_seqs, max_total_q, max_kv, windows=((-1, -1),), num_pages=None, **options):
        self.device, self.windows, self.options = device, windows, options
        self.max_seqs, self.max_total_q, self.pages = max_seqs, max_total_q, -(-max_kv // PAGE)
        num_pages = num_pages or self.pages + 7
        make = dict(dtype=torch.bfloat16, device=device)
        self.caches = [[torch.randn(num_pages, PAGE, HEADS_KV, DIM, **make) for _ in "kv"] for _ in windows]
        self.q = [torch.randn(max_total_q, HEADS_Q, DIM, **make) for _ in windows]
        # Rows of random pages: sequences may share some.
        self.table = torch.randint(num_pages, (max_seqs, self.pages), dtype=torch.int32, device=device)
        self.heads = dict(num_heads_q=HEADS_Q, num_heads_kv=HEADS_KV, head_dim=DIM, dtype=torch.bfloat16)

    def runner(self, **changes):
        options = dict(max_seqs=self.max_seqs, max_total_q=self.max_total_q, max_pages_per_seq=self.pages)
        options |= dict(window_sizes=self.windows, device=self.device, **self.heads, **self.options)
        return varattn.GraphRunner(self.forward, **(options | changes))

    def forward(self, batch):
        n = batch.num_tokens
        return [
            batch.attend(q[:n], *cache, window_size=window, return_lse=True)
            for q, cache, window in zip(self.q, self.caches, self.windows, strict=True)
        ]

    def lengths(self, q_lens, kv_lens):
        cu = [0]
        for n in q_lens:
            cu.append(cu[-1] + n)
        return int32(cu, self.device), int32(kv_lens, self.device), self.table[: len(q_lens)]

    def eager(self, step, num_tokens):
        """The same with fresh buffers, planned alone for the same bounds."""
        cu, used, table = self.full(*step)
        results = []
        for q, cache, window in zip(self.q, self.caches, self.windows, strict=True):
            shared = dict(causal=True, window_size=window) | self.options
            options = dict(seqused_k=used, max_total_q=self.max_total_q, **self.heads, **shared)
            plan = varattn.plan(cu, **options)
            lengths = dict(seqused_k=used, block_table=table)
            results.append(
                varattn.mha_varlen(q[:num_tokens], *cache, cu, **lengths, plan=plan, return_lse=True, **shared)
            )
            varattn.check(plan)
        return results

    def full(self, cu, used, table):
        missing = self.max_seqs - used.shape[0]
        cu = torch.cat([cu, cu[-1:].expand(missing)])
        return cu, torch.nn.functional.pad(used, (0, missing)), torch.nn.functional.pad(table, (0, 0, 0, missing))

    def random_step(self, max_q=16):
        """(q_lens, kv_lens): decodes, speculation and chunks, some of them without queries or keys."""
        q_lens, budget = [], self.max_total_q
        for _ in range(random.randint(0, self.max_seqs)):
            q_lens.append(min(budget, random.choice([0, 1, 1, 1, random.randint(2, max_q)])))
            budget -= q_lens[-1]
        if q_lens and random.random() < 0.3:
            q_lens[random.randrange(len(q_lens))] += random.randint(0, budget)
        most = self.pages * PAGE
        return q_lens, [min(most, random.choice([0, n, n + random.randint(0, 200), most])) for n in q_lens]


def assert_same(got, want, what):
    for layer, pairs in enumerate(zip(got, want, strict=True)):
        for name, a, b in zip(("out", "lse"), *pairs, strict=True):
            rows = b.shape[-1] if name == "lse" else b.shape[0]
            a = a[:, :rows] if name == "lse" else a[:rows]
            assert torch.equal(a, b), f"layer {layer}, {name}: {what}"


def assert_padding(got, used_rows, what):
    for out, lse in got:
        assert (out[used_rows:] == 0).all() and (lse[:, used_rows:] == -torch.inf).all(), f"padding rows: {what}"


@pytest.mark.parametrize("options", INVARIANCE, ids=str)
def test_random_steps_have_the_bits_of_eager_calls(device, seed, options):
    engine = Engine(device, max_seqs=6, max_total_q=50, max_kv=9000 if options else 600, **options)
    runner = engine.runner(token_counts=[1, 6, 20, 50])
    for _ in range(25):
        q_lens, kv_lens = engine.random_step()
        step, total = engine.lengths(q_lens, kv_lens), sum(q_lens)
        got = runner.run(*step, num_tokens=total, decode_only=all(n <= 1 for n in q_lens))
        runner.check()
        rows = runner.padded_tokens(total) if device == "cuda" else total
        assert all(out.shape[0] == rows and lse.shape[1] == rows for out, lse in got)
        assert_same(got, engine.eager(step, total), (q_lens, kv_lens))
        assert_padding(got, total, (q_lens, kv_lens))


def test_pages_of_an_earlier_step_are_never_read(device, seed):
    engine = Engine(device, max_seqs=2, max_total_q=2, max_kv=160)
    runner = engine.runner()
    cu, used, table = engine.lengths([1, 1], [160, 160])
    runner.run(cu, used, table, num_tokens=2)
    # Keys of ten pages, and a table of three: what the step before had there is gone.
    (got,) = runner.run(cu, used, table[:, :3], num_tokens=2)
    with pytest.raises(varattn.PlanError, match="page id"):
        runner.check()
    table = torch.cat([table[:, :3], table[:, 3:].new_full((2, 7), -1)], dim=1)
    lengths = dict(seqused_k=used, block_table=table)
    want = varattn.mha_varlen(engine.q[0], *engine.caches[0], cu, **lengths, causal=True, return_lse=True)
    assert_same([got], [want], "a narrower table")


def test_layers_of_several_windows(device, seed):
    windows = [(-1, -1), (31, -1), (-1, -1), (127, -1)]
    engine = Engine(device, max_seqs=5, max_total_q=40, max_kv=900, windows=windows)
    # In any order and number; causal ends (31, 7) where it ends (31, -1).
    runner = engine.runner(window_sizes=[(-1, -1), (31, 7), [127, -1], (127, -1), (-1, 0)])
    assert len({plan.buffer.data_ptr() for plan in runner.plans}) == (3 if device == "cuda" else 0)
    for _ in range(6):
        q_lens, kv_lens = engine.random_step()
        step = engine.lengths(q_lens, kv_lens)
        got = runner.run(*step, num_tokens=sum(q_lens))
        assert_same(got, engine.eager(step, sum(q_lens)), (q_lens, kv_lens))
        assert len(runner.plans) == 3


def test_which_steps_go_through_graphs(device, seed):
    calls = []

    def forward(batch):
        calls.append(batch.num_tokens)
        return batch.num_tokens

    engine = Engine(device, max_seqs=2, max_total_q=8, max_kv=64)
    engine.forward = forward
    step = engine.lengths([1, 2], [5, 9])
    for decode, mixed in [(True, True), (True, False), (False, True), (False, False)]:
        runner = engine.runner(token_counts=[4, 8], graph_decode=decode, graph_mixed=mixed)
        for decode_only in (True, False):
            calls.clear()
            by_graph = device == "cuda" and (decode if decode_only else mixed)
            result = runner.run(*step, num_tokens=3, decode_only=decode_only)
            assert (calls, result) == (([], 4) if by_graph else ([3], 3)), (decode, mixed, decode_only)


def test_token_counts():
    engine = Engine("cpu", max_seqs=2, max_total_q=100, max_kv=64)
    runner = engine.runner()
    assert runner.token_counts == [1, 2, 4, 8, 16, 32, 64, 100]
    assert [runner.padded_tokens(n) for n in (0, 1, 3, 64, 65, 100)] == [1, 1, 4, 64, 100, 100]
    for n in (-1, 101):
        with pytest.raises(ValueError, match=rf"GraphRunner.padded_tokens: num_tokens: got {n}; takes 0 to 100"):
            runner.padded_tokens(n)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"GraphRunner: token_counts: got \[\]; takes", dict(token_counts=[])),
        (r"GraphRunner: token_counts: got \[4, 2\]", dict(token_counts=[4, 2])),
        (r"GraphRunner: token_counts: got \[2, 16\]; .* max_total_q = 8", dict(token_counts=[2, 16])),
        (r"GraphRunner: token_counts: got \[0, 8\]", dict(token_counts=[0, 8])),
        (r"GraphRunner: window_sizes: got \[\]; takes a sequence of \(left, right\)", dict(window_sizes=[])),
        (r"GraphRunner: window_sizes: got \(-1, -1\); takes a sequence of", dict(window_sizes=(-1, -1))),
    ],
)
def test_bad_capacities_are_refused(message, changes):
    with pytest.raises(ValueError, match=message):
        Engine("cpu", max_seqs=2, max_total_q=8, max_kv=64).runner(**changes)


def test_bad_steps_are_refused(seed):
    engine = Engine("cpu", max_seqs=2, max_total_q=8, max_kv=64)
    runner = engine.runner()
    cu, used, table = engine.lengths([1, 2], [5, 9])
    for message, step, num_tokens in [
        (r"num_tokens: got 9; takes 0 to 8", (cu, used, table), 9),
        (r"num_tokens: got -1; takes 0 to 8", (cu, used, table), -1),
        (r"seqused_k: got 3 sequences; takes at most 2", (cu, torch.cat([used, used[:1]]), table), 3),
        (r"block_table: got 8 pages a sequence; takes at most 4", (cu, used, table.repeat(1, 2)), 3),
        (r"cu_seqlens_q, block_table: got shapes \(2,\), \(2, 4\); takes \(3,\)", (cu[1:], used, table), 3),
    ]:
        with pytest.raises(ValueError, match=message):
            runner.run(*step, num_tokens=num_tokens)
    engine.forward = lambda batch: batch.attend(engine.q[0], *engine.caches[0], window_size=(3, 0))
    with pytest.raises(ValueError, match=r"Batch.attend: window_size: got \(3, 0\); takes .* its mask makes \(-1, 0\)"):
        engine.runner().run(cu, used, table, num_tokens=3)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (
            ValueError,
            r"cu_seqlens_q: got torch.float64, shape \(3,\); takes an int32",
            lambda cu, u, t: (cu.double(), u, t),
        ),
        (ValueError, r"seqused_k: got torch.int32, shape \(\); takes .* \(n,\)", lambda cu, u, t: (cu, u[0], t)),
        (ValueError, r"block_table: got .* \(4,\); takes .* \(num_seqs, pages\)", lambda cu, u, t: (cu, u, t[0])),
        (TypeError, r"cu_seqlens_q: got list; takes an int32 tensor", lambda cu, u, t: (cu.tolist(), u, t)),
    ],
)
def test_steps_of_other_types_are_refused(error, message, changes):
    engine = Engine("cpu", max_seqs=2, max_total_q=8, max_kv=64)
    with pytest.raises(error, match=r"GraphRunner.run: " + message):
        engine.runner().run(*changes(*engine.lengths([1, 2], [5, 9])), num_tokens=3)


def test_plan_many(device, seed):
    engine = Engine(device, max_seqs=3, max_total_q=20, max_kv=300)
    cu, used, table = engine.lengths([1, 9, 3], [300, 40, 3])
    windows = [(-1, -1), (16, -1), (64, 3)]
    options = dict(seqused_k=used, max_total_q=20, causal=True, **engine.heads)
    plans = varattn.plan_many(cu, window_sizes=windows, **options)
    for window, plan in zip(windows, plans, strict=True):
        assert torch.equal(plan.buffer, varattn.plan(cu, window_size=window, **options).buffer)
    again = varattn.plan_many(cu, window_sizes=windows, out=plans, **options)
    assert [p.buffer.data_ptr() for p in again] == [p.buffer.data_ptr() for p in plans]
    with pytest.raises(varattn.PlanError, match=r"window_size\[0\]: got a plan made for 16; takes one made for 64"):
        varattn.mha_varlen(
            engine.q[0][:13], *engine.caches[0], cu, seqused_k=used, block_table=table, plan=plans[1], causal=True,
            window_size=(64, 3),
        )  # fmt: skip
    with pytest.raises(ValueError, match="plan_many: out: got 1 buffers; takes one for each of 3 windows"):
        varattn.plan_many(cu, window_sizes=windows, out=plans[:1], **options)


def test_one_plan_serves_many_layers(device, seed):
    """No reset in between: the workspace is left as it was found."""
    engine = Engine(device, max_seqs=4, max_total_q=20, max_kv=3000)
    step = engine.lengths([1, 9, 3, 1], [3000, 40, 900, 20])
    want = engine.eager(step, 14)
    engine.forward = lambda batch: [
        batch.attend(engine.q[0][: batch.num_tokens], *engine.caches[0], return_lse=True) for _ in range(80)
    ]
    got = engine.runner(token_counts=[14, 20]).run(*step, num_tokens=14)
    for layer in got:
        assert_same([layer], want, "80 layers")


# ---- What only a GPU shows -------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_run_neither_synchronises_nor_allocates(seed):
    engine = Engine("cuda", max_seqs=6, max_total_q=50, max_kv=600, windows=[(-1, -1), (31, -1)])
    runner = engine.runner()
    on_device = engine.lengths([1, 30], [600, 90])
    pinned = [t.cpu().pin_memory() for t in on_device]
    runner.run(*on_device, num_tokens=31)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (on_device, pinned):
            runner.run(*step, num_tokens=31)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.gpu
def test_captured_on_nothing_replayed_on_128k_keys(seed):
    """Graphs are captured on empty lengths; steps reach the capacity in every way."""
    engine = Engine("cuda", max_seqs=8, max_total_q=64, max_kv=131072)
    runner = engine.runner()
    long = 131072
    for q_lens, kv_lens in [
        ([1], [1]),
        ([1], [long]),
        ([1] * 8, [long] * 8),
        ([57] + [1] * 7, [long, 1, 16, 1000, long, 2, 3, 4]),
        ([64], [64]),
        ([8] * 8, [long - i for i in range(8)]),
        ([], []),
    ]:
        step = engine.lengths(q_lens, kv_lens)
        got = runner.run(*step, num_tokens=sum(q_lens))
        runner.check()
        assert_same(got, engine.eager(step, sum(q_lens)), (q_lens, kv_lens))


@pytest.mark.gpu
def test_random_replays(seed):
    """VARATTN_SOAK replays of one graph; every 50th is compared with an eager call."""
    engine = Engine("cuda", max_seqs=12, max_total_q=64, max_kv=4096)
    runner = engine.runner(token_counts=[64])
    pool = [engine.random_step() for _ in range(256)]
    steps = [(engine.lengths(*lens), sum(lens[0])) for lens in pool]
    for i in range(SOAK):
        index = random.randrange(len(steps))
        step, num_tokens = steps[index]
        got = runner.run(*step, num_tokens=num_tokens)
        if i % 50 == 0:
            runner.check()
            assert_same(got, engine.eager(step, num_tokens), pool[index])
            assert_padding(got, num_tokens, pool[index])
    runner.check()


@pytest.mark.gpu
def test_batch_sizes(seed):
    """One graph for up to 4,096 sequences: one of them long, whatever the others."""
    long = 131072
    engine = Engine("cuda", max_seqs=4096, max_total_q=4096, max_kv=long)
    runner = engine.runner(token_counts=[1024, 4096])
    for num_seqs in (0, 1, 991, 992, 993, 1024, 4096):
        kv_lens = [random.randint(1, 40) for _ in range(num_seqs)]
        if num_seqs:
            at = random.randrange(num_seqs)
            kv_lens[at] = long
        step = engine.lengths([1] * num_seqs, kv_lens)
        ((out, lse),) = runner.run(*step, num_tokens=num_seqs, decode_only=True)
        runner.check()
        assert_padding([(out, lse)], num_seqs, num_seqs)
        if not num_seqs:
            continue
        items = runner.plans[0].items()
        assert items["num_splits"][items["seq"] == at].max() > 1, f"{num_seqs} sequences: the long one is not split"
        for i in {at, 0, num_seqs - 1, random.randrange(num_seqs)}:
            row = engine.lengths([1], [kv_lens[i]])
            cache = [c.float() for c in engine.caches[0]]
            arguments = (engine.q[0][i : i + 1].float(), *cache, row[0])
            options = dict(seqused_k=row[1], block_table=step[2][i : i + 1], causal=True)
            want, want_lse = varattn.reference.mha_varlen(*arguments, **options)
            size = varattn.reference.mha_varlen(arguments[0], cache[0], cache[1].abs(), row[0], **options)[0]
            assert ((out[i] - want[0]).abs() <= OUT_TOLERANCE[torch.bfloat16] * size[0] + 1e-6).all(), (num_seqs, i)
            assert (lse[:, i] - want_lse[:, 0]).abs().max() < 1e-3 * (1 + want_lse.abs().max()), (num_seqs, i)


@pytest.mark.gpu
def test_hostile_steps_never_fault_and_leave_no_trace(seed):
    engine = Engine("cuda", max_seqs=8, max_total_q=64, max_kv=2048)
    runner = engine.runner(token_counts=[64])
    good = engine.lengths([1, 20, 4, 1], [2000, 300, 77, 1])
    want = [tuple(t.clone() for t in layer) for layer in runner.run(*good, num_tokens=26)]
    wild = [-1, -INT32_MAX - 1, INT32_MAX, 0, 1, 63, 65, 4096, 1 << 29, 1 << 30]
    num_told = 0
    for _ in range(60):
        n = random.randint(1, 8)
        cu = int32([random.choice([*wild, random.randint(-9, 70)]) for _ in range(n + 1)], "cuda")
        used = int32([random.choice([*wild, random.randint(-9, 2100)]) for _ in range(n)], "cuda")
        table = engine.table[:n].clone()
        table[torch.rand(table.shape, device="cuda") < 0.3] = random.choice([-1, INT32_MAX, -INT32_MAX, 10**6])
        got = runner.run(cu, used, table, num_tokens=64)
        torch.cuda.synchronize()
        assert all(torch.isfinite(out).all() and not torch.isnan(lse).any() for out, lse in got), (cu, used)
        try:
            runner.check()
        except varattn.PlanError:
            num_told += 1
    assert num_told > 50
    got = runner.run(*good, num_tokens=26)
    runner.check()
    assert_same(got, want, "after hostile steps")


@pytest.mark.gpu
def test_four_streams_share_a_plan(seed):
    """Each with its own workspace, eagerly and in graphs: the bits of one after the other."""
    engine = Engine("cuda", max_seqs=8, max_total_q=64, max_kv=4096)
    step = engine.lengths([1, 30, 3, 1], [4096, 300, 900, 20])
    want = engine.eager(step, 35)
    cu, used, table = engine.full(*step)
    heads = dict(max_seqs=8, max_total_q=64, causal=True, **engine.heads)
    options = dict(seqused_k=used, block_table=table, causal=True)
    plan = varattn.plan(cu, seqused_k=used, max_total_q=64, causal=True, **engine.heads)
    work, workspaces = [], []
    for i in range(4):
        stream = torch.cuda.Stream()
        size = varattn.workspace_size(**heads, device="cuda")
        workspace = torch.zeros(size, dtype=torch.uint8, device="cuda")
        workspaces.append(workspace)  # a graph does not hold it
        out, lse = (torch.empty_like(t) for t in want[0])

        def call(workspace=workspace, out=out, lse=lse):
            arguments = dict(plan=plan, workspace=workspace, out=out, lse=lse)
            varattn.mha_varlen(engine.q[0][:35], *engine.caches[0], cu, **options, **arguments)

        if i % 2:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                call()
            call = graph.replay
        work.append((stream, call, (out, lse), torch.zeros((), dtype=torch.int64, device="cuda")))
    torch.cuda.synchronize()
    for _ in range(SOAK // 10):
        for stream, call, (out, lse), wrong in work:
            with torch.cuda.stream(stream):
                out.fill_(torch.nan)
                lse.fill_(torch.nan)
                call()
                wrong += (out != want[0][0]).any() | (lse != want[0][1]).any()
    torch.cuda.synchronize()
    assert [int(wrong) for *_, wrong in work] == [0] * 4
    varattn.check(plan)
