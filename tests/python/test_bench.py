"""The benchmark program: its steps, its reference, and a dry run on the CPU."""

import importlib.util
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import varattn
from varattn.picture import simulate_queue
from varattn.planner import CONFIG_DTYPE, HEADER_DTYPE, ITEM_DTYPE
from varattn.timeline import RECORD_DTYPE

for package in ("typer", "rich", "matplotlib"):
    pytest.importorskip(package, reason="the benchmark needs varattn[demo]")

needs_host = pytest.mark.skipif(
    importlib.util.find_spec("varattn._host") is None, reason="the pybind11 module is for one version of Python"
)

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_flops_count_visible_pairs():
    from steps import BenchStep, Heads

    rng = random.Random(0)
    lengths = tuple((rng.randint(0, 40), rng.randint(0, 60)) for _ in range(50))
    pairs = sum(max(0, min(k, k - q + i + 1)) for q, k in lengths for i in range(q))
    step = BenchStep("a step", "mixed", lengths, Heads(4, 2, 16))
    assert step.flops == 4 * pairs * 4 * 16
    assert step.bytes == 2 * (2 * step.total_q * 64 + 2 * sum(k for q, k in lengths if q) * 32)
    for window in (0, 3, 30, 100):
        keys = [[range(max(0, k - q + i - window), k - q + i + 1) for i in range(q)] for q, k in lengths]
        step = replace(step, window=window)
        assert step.flops == 4 * sum(len(seen) for rows in keys for seen in rows) * 4 * 16
        # Keys from the first one in the first query's window on.
        kv = sum(min(k, q + window) for q, k in lengths if q)
        assert step.bytes == 2 * (2 * step.total_q * 64 + 2 * kv * 32)


def test_titles_are_unique_and_ragged_lengths_are_fixed():
    from steps import TRACES, fixed_steps, trace_steps

    make = lambda: fixed_steps() + [s for t in TRACES for s in trace_steps(t, 4)]  # noqa: E731
    steps = make()
    titles = [s.title for s in steps]
    assert len(set(titles)) == len(titles)
    again = {s.title: s for s in make()}
    assert all(again[s.title] == s for s in steps)
    assert len([s for s in steps if s.kind == "trace"]) == 12


def test_targets_are_of_steps_that_exist():
    from bench import Row
    from steps import fixed_steps
    from targets import FP16, TARGETS, target_of

    steps = {s.title: s for s in fixed_steps()}
    assert set(TARGETS) <= set(steps)
    assert target_of(Row(steps["decode b1 k64k, p16"], 1.0, 132)) == TARGETS["decode b1 k64k, p16"]
    assert target_of(Row(replace(steps["decode b1 k64k, p16"], dtype="float16"), 1.0, 132)) is FP16


def test_a_row_is_held_to_its_target():
    from bench import FA3_PLAN, OURS, Row
    from steps import fixed_steps
    from targets import OUR_PLAN, is_measured, misses
    from timing import Timing

    steps = {s.title: s for s in fixed_steps()}

    def row(title, ours, fa3=None, num_sms=132, dtype="bfloat16"):
        times = {OURS: Timing.of([ours])} | ({"FA3": Timing.of([fa3]), FA3_PLAN: Timing.of([1e-9])} if fa3 else {})
        return Row(replace(steps[title], dtype=dtype), 80e-6, num_sms, times)

    def words(r, *others):
        rows = {x.step.title: x for x in (r, *others)}
        return misses(r, rows, "NVIDIA H200", 4.2e12) if is_measured(r, rows) else None

    mixed = "mixed 2k chunk + 63 decode, p16"  # 1.50, and 0.85 of the floor
    assert words(row(mixed, 94e-6, 150e-6)) == []
    assert words(row(mixed, 94e-6, 130e-6)) == ["ratio 1.38 < 1.50"]
    assert words(row(mixed, 110e-6, 190e-6)) == ["share of the floor 0.73 < 0.85"]
    assert words(row(mixed, 94e-6)) is None, "nothing to compare with"
    packed, paged = "prefill 4x4k causal, packed", "prefill 4x4k causal, p16"
    assert words(row(paged, 100e-6, 120e-6), row(packed, 98e-6)) == []
    assert words(row(paged, 100e-6, 120e-6), row(packed, 90e-6)) == ["share of packed 0.90 < 0.97"]
    assert words(row(paged, 100e-6, 120e-6)) is None
    few = "decode b128 k4k on 48 SMs, p16"
    right = steps[few].bytes / (78e9 * 48)
    assert words(row(few, right, num_sms=48)) == []
    assert words(row(few, right * 1.1, num_sms=48)) == ["GB/s per SM 70.91 < 78.00"]
    decode = "decode b1 k64k, p16"
    half = row(decode, 105e-6, dtype="float16")
    assert words(half, row(decode, 100e-6)) == ["share of bfloat16 0.95 < 0.98"]
    assert words(half, row(decode, 104e-6)) == []
    many = row("decode b1024 k1k, p16", 100e-6, 120e-6)
    assert words(many) == [], "its planner was not timed"
    assert words(replace(many, times=many.times | {OUR_PLAN: Timing.of([5e-6])})) == []
    assert words(replace(many, times=many.times | {OUR_PLAN: Timing.of([6e-6])})) == ["plan 6.0 us > 5.0 us"]
    assert words(row("skew 1x128k + 899x256, p16", 1.0)) is None, "no target"


def test_steps_are_those_that_figures_are_quoted_for():
    path = ROOT.parent / "shared" / "steps.py"
    if not path.exists():
        pytest.skip("the shared definition of the steps is not beside this checkout")
    from steps import fixed_steps

    spec = importlib.util.spec_from_file_location("shared_steps", path)
    shared = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = shared
    spec.loader.exec_module(shared)
    ours = {(s.name, s.page_size): s for s in fixed_steps()}
    for case in shared.base_cases() + shared.peer_cases():
        step = ours[case.name, case.page_size]
        assert step.lengths == tuple(case.seqs), case.name
        assert (step.heads.q, step.heads.kv, step.heads.dim) == (case.Hq, case.Hkv, case.D)
        assert (step.causal, step.dtype, step.bytes) == (case.causal, case.dtype, case.bytes())
        assert step.flops == pytest.approx(case.flops(), rel=1e-9)


def attend(x) -> torch.Tensor:
    """The right output of a step."""
    from inputs import reference

    rows = [
        reference(x.q[x.q_offsets[i] : x.q_offsets[i + 1]], *x.packed_kv(i, k), True, x.step.window)
        for i, (_, k) in enumerate(x.step.lengths)
    ]
    return torch.cat(rows).to(x.dtype)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("page_size", [0, 16])
def test_check_finds_a_wrong_output(page_size, window, seed):
    from inputs import StepInputs
    from steps import BenchStep, Heads

    step = BenchStep("a step", "mixed", ((5, 40), (1, 70), (30, 30)), Heads(4, 2, 16), page_size, window=window)
    x = StepInputs(step, torch.device("cpu"), seed)
    out = attend(x)
    error, wrong = x.check(out)
    assert not wrong and error < 0.01
    bad = out.clone()
    bad[5] *= 1.1
    assert "sequence 1, token 0" in x.check(bad)[1]
    bad[-1, 0, 0] = torch.nan
    assert "not finite" in x.check(bad)[1]
    if window is not None:
        x.step = replace(step, window=None)
        assert "relative error" in x.check(out)[1]


@pytest.mark.parametrize("lengths", [((1, 50), (1, 9), (8, 20), (30, 30)), ((8, 20), (30, 30), (1, 50))])
def test_a_step_in_two_launches(lengths, seed):
    from inputs import StepInputs
    from peers import Fa3
    from steps import BenchStep, Heads

    class Peer(Fa3):
        def __init__(self):
            self.seen = []

        def plan(self, x, num_splits=0, sm_margin=0):
            return tuple(x.step.lengths), num_splits

        def attend(self, x, copy, out, plan=None, num_splits=0, sm_margin=0):
            assert plan == (tuple(x.step.lengths), num_splits)
            assert x.cu_seqlens_q.tolist() == x.q_offsets and x.q_offsets[-1] == len(x.q) == len(out)
            assert (x.seqused_k.tolist(), len(x.block_table)) == ([k for _, k in x.step.lengths], len(x.step.lengths))
            assert x.max_q == max(q for q, _ in x.step.lengths) and x.max_k == max(k for _, k in x.step.lengths)
            self.seen.append(sorted({q > 1 for q, _ in x.step.lengths}))
            out.copy_(attend(x))

    x = StepInputs(BenchStep("a step", "mixed", lengths, Heads(4, 2, 16)), torch.device("cpu"), seed)
    ways = Peer().two_launches(x, torch.empty_like(x.q))
    assert len(ways) == 2
    peer, out = Peer(), torch.full_like(x.q, torch.nan)
    for make in peer.two_launches(x, out).values():
        out.fill_(torch.nan)
        peer.seen.clear()
        make()(0)
        assert sorted(peer.seen) == [[False], [True]]
        assert not x.check(out)[1]
    alike = BenchStep("a step", "decode", ((1, 50), (1, 9)), Heads(4, 2, 16))
    assert not peer.two_launches(StepInputs(alike, torch.device("cpu"), seed), out), "nothing to part"


@pytest.mark.skipif(not varattn.is_supported("cpu"), reason="the varattn library is not built")
def test_a_wrong_output_is_not_timed(monkeypatch, seed):
    import bench
    import sweep
    from steps import BenchStep, Heads

    settings = bench.Settings(torch.device("cpu"), 0.0, False, 0, 0, seed)
    step = BenchStep("a step", "decode", ((1, 50), (1, 9)), Heads(4, 2, 16), 16)
    right = bench.measure(step, (1.0, 1.0), None, settings)
    assert right.ours and not right.problem
    monkeypatch.setattr(varattn, "mha_varlen", lambda *_, out, **__: out.zero_())
    wrong = bench.measure(step, (1.0, 1.0), None, settings)
    assert "relative error" in wrong.problem and not wrong.times and wrong.ratio is None
    runner = sweep.Runner(settings, None, 1)
    runner.time(step)
    assert "relative error" in runner.problems[0]


@pytest.mark.skipif(not varattn.is_supported("cpu"), reason="the varattn library is not built")
def test_a_peer_that_writes_nothing_is_not_timed(seed):
    import trace_bench
    from bench import Settings
    from steps import TRACES, trace_steps

    class Peer:
        def ways(self, x, out, sm_margin):
            return {"FA3": lambda: lambda copy: out.copy_(attend(x)), "FA3 idle": lambda: lambda copy: None}

    settings = Settings(torch.device("cpu"), 0.0, False, 0, 0, seed)
    steps = [replace(s, page_size=16).shrunk() for s in trace_steps(TRACES[0], 2)]
    row = trace_bench.measure(trace_bench.Pool(TRACES[0], steps, settings), steps[0], (1.0, 1.0), Peer(), settings, 0.0)
    assert "FA3" in row.times and "FA3 idle" not in row.times
    assert len(row.problems) == 1 and row.problems[0].startswith("FA3 idle: wrong")


@pytest.mark.skipif(not varattn.is_supported("cpu"), reason="the varattn library is not built")
def test_dry_run(tmp_path):
    files = ["--json", tmp_path / "out.json", "--plot", tmp_path / "out.png"]
    command = [
        sys.executable,
        BENCHMARKS / "bench.py",
        "--device",
        "cpu",
        "--cases",
        "mixed|d64|48 SMs",
        "--fp16",
        *files,
    ]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert rows and all(r["problem"] == "" and r["times"]["varattn"]["median"] > 0 for r in rows)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not varattn.is_supported("cpu"), reason="the varattn library is not built")
def test_dry_run_of_the_traces(tmp_path):
    files = ["--json", tmp_path / "out.json", "--plot", tmp_path / "out.png"]
    command = [sys.executable, BENCHMARKS / "trace_bench.py", "--device", "cpu", "--steps", "2", *files]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    traces = json.loads((tmp_path / "out.json").read_text())["traces"]
    assert len(traces) == 3
    for trace in traces.values():
        assert trace["figures"]["one graph over planned alone"]["value"] > 0
        assert all(step["problems"] == [] and len(step["times"]) == 6 for step in trace["steps"])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_steps_of_whole_traces(tmp_path):
    from varattn.trace import EXCERPTS, TraceError

    from steps import TRACES, trace_steps, whole_trace

    code = next(t for t in TRACES if t.excerpt == "code")
    with pytest.raises(TraceError, match="takes one CSV file with 'code' in its name; got none"):
        whole_trace(tmp_path, code)
    head, *requests = EXCERPTS["code"].read_text().splitlines()
    (tmp_path / "all_code.csv").write_text("\n".join([head, *requests, *requests]))
    (tmp_path / "all_conv.csv").write_text("\n".join([head, *requests]))
    file = whole_trace(tmp_path, code)
    assert file.name == "all_code.csv"
    last = [int(trace_steps(code, 4, f)[-1].name.split()[-1]) for f in (None, file)]
    assert last[1] > 1.8 * last[0]  # evenly spaced over twice as many
    (tmp_path / "more_code.csv").touch()
    with pytest.raises(TraceError, match=r"got all_code\.csv, more_code\.csv"):
        whole_trace(tmp_path, code)


@pytest.mark.skipif(not varattn.is_supported("cpu"), reason="the varattn library is not built")
@pytest.mark.parametrize(
    ("only", "count"), [("splits", 2), ("window", 3), ("invariant", 10), ("padding", 8), ("plans", 6)]
)
def test_dry_run_of_a_sweep(only, count, tmp_path):
    options = ["--only", only, "--every", "80", "--json", tmp_path / "out.json"]
    command = [sys.executable, BENCHMARKS / "sweep.py", "--device", "cpu", *options]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    sweeps = json.loads((tmp_path / "out.json").read_text())["sweeps"]
    assert list(sweeps) == [only] and len(sweeps[only]) == count
    assert all(p["quality"] == pytest.approx(p["reference_us"] / p["us"]) for p in sweeps[only])


@needs_host
def test_a_simulated_queue():
    from foresee import Costs, Queue, Task

    costs = Costs(start=1.0, cta_rate=10.0, memory_rate=15.0)
    prefills = [Task(6.0), Task(5.0), Task(4.0), Task(3.0)]
    assert Queue(prefills, 2, 2, 0, 1).simulate(costs) == 1 + 9
    assert Queue(prefills, 1, 1, 0, 1).simulate(costs) == Queue(prefills, 1, 1, 0, 1).least(costs) == 1 + 18
    # Alone at the CTA's rate; two share the memory's; the longer one goes on alone at its own.
    decode = Task(2.0, 30)
    assert Queue([decode], 0, 4, 0, 1).simulate(costs) == 1 + 2 + 3
    assert Queue([decode, decode], 0, 4, 0, 1).simulate(costs) == 1 + 2 + 4
    assert Queue([decode, Task(2.0, 60)], 0, 2, 0, 1).simulate(costs) == 1 + 2 + 4 + 3
    # A CTA that runs out of decodes takes the shortest prefill.
    assert Queue([*prefills, decode], 1, 2, 0, 1).simulate(costs) == 1 + max(6 + 5, 5 + 3 + 4)


@needs_host
@pytest.mark.parametrize("heads", ["32/8", "16/2"])
def test_plans_are_foreseen(heads):
    command = [sys.executable, BENCHMARKS / "foresee.py", "--steps", "3", "--show", "1", "--heads", heads]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    quotients = [float(q) for q in re.findall(r"in 3 steps, ([0-9.]+) of what balance allows", done.stdout)]
    assert len(quotients) == 3 and all(1 <= q < 1.3 for q in quotients)


@pytest.mark.parametrize(
    ("program", "option"),
    [("trace_bench", "--traces"), ("sweep", "--only"), pytest.param("foresee", "--traces", marks=needs_host)],
)
def test_a_name_that_there_is_not(program, option):
    device = [] if program == "foresee" else ["--device", "cpu"]
    command = [sys.executable, BENCHMARKS / f"{program}.py", *device, option, "ode"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and f"{program}: {option}: got 'ode'; takes" in done.stdout


@needs_host
def test_measured_steps_of_other_heads_are_refused(tmp_path):
    from foresee import measured_times

    step = {"title": "a step", "times": {"planned alone": {"median": 2e-6}}}
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"context": {"heads": "32/8"}, "traces": {"a trace": {"steps": [step]}}}))
    assert measured_times(file, "32/8") == {"a step": 2.0}
    with pytest.raises(ValueError, match=r"--measured: .*got steps of 32/8 heads; takes 8/1"):
        measured_times(file, "8/1")


def test_traces_are_chosen_by_words():
    from steps import chosen_traces

    assert [t.excerpt for t, _ in chosen_traces("code", None)] == ["code"]  # not the one of 4 tokens a decode
    assert [t.excerpt for t, _ in chosen_traces("", None)] == ["conv", "code", "conv"]


@pytest.mark.parametrize("program", ["bench", "trace_bench", "sweep"])
def test_a_peer_needs_a_gpu(program, tmp_path):
    command = [sys.executable, BENCHMARKS / f"{program}.py", "--device", "cpu", "--fa3", tmp_path / "fa3.so"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and f"{program}: --fa3: " in done.stdout and "takes --device cuda" in done.stdout


def test_what_a_sweep_is_held_to():
    from sweep import Point, Sweep

    def words(sweep, *qualities):
        return sweep.verdict([Point("a step", 1.0, q, "another", q) for q in qualities])

    all_of_it = Sweep("a sweep", iter, least=0.85)
    assert words(all_of_it, 0.9, 0.85).endswith("met") and words(all_of_it, 0.9, 0.84).endswith("MISSED")
    most_of_it = Sweep("a sweep", iter, least=0.9, share=0.5, least_of_all=0.75)
    assert words(most_of_it, 0.95, 0.75).endswith("met")
    assert words(most_of_it, 0.95, 0.74).endswith("MISSED")
    assert words(most_of_it, 0.95, 0.8, 0.8).endswith("MISSED")
    to_one_percent = Sweep("a sweep", iter, least=1 / 1.01, digits=4)
    assert words(to_one_percent, 1.0, 0.9901).endswith("met") and words(to_one_percent, 1.0, 0.99).endswith("MISSED")


def test_figures_of_a_trace():
    from steps import TRACES, BenchStep, Heads
    from timing import Timing
    from trace_bench import FA3_BOUND, ONE_GRAPH, StepTimes, figures

    step = BenchStep("a step", "trace", ((1, 1),))
    times = [(90, 100, 130, 140), (95, 100, 110, 150)]
    rows = []
    for floor, ours, best, bound in times:
        named = {ONE_GRAPH: ours, "FA3": best, FA3_BOUND: bound}
        rows.append(StepTimes(step, floor, {name: Timing.of([t]) for name, t in named.items()}))
    found = {f.name: (f.value, f.verdict) for f in figures(TRACES[0].name, rows)}
    assert found["floor over one graph"] == (pytest.approx(0.925), ">= 0.90 met")
    assert found["FA3 plan 32 over one graph"] == (pytest.approx(1.45), ">= 1.25 met")
    assert found["FA3's best of each step over one graph"] == (pytest.approx(1.20), "")
    assert found["one graph over planned alone"] == (None, "")
    assert found["one graph, padding left, over planned alone"] == (None, "")
    assert "MISSED" in dict((f.name, f.verdict) for f in figures(TRACES[1].name, rows))["FA3 plan 32 over one graph"]
    of_others = [replace(row, step=replace(step, heads=Heads(8, 1))) for row in rows]
    assert not any(f.verdict for f in figures(TRACES[0].name, of_others))


def test_heads_are_parsed():
    from steps import Heads

    assert Heads.parse("28/4") == Heads(28, 4)
    for text in ("32", "8/3", "8/0", "0/1", "a/b", "8/1 "):
        with pytest.raises(ValueError, match="--heads: got"):
            Heads.parse(text)


@needs_host
def test_calibration_finds_the_costs_that_tasks_took(seed):
    from calibrate import Costs, TracedCall, fit, table_row

    heads, ctas, front = 8, 132, 50
    costs = Costs(item=2500, block=1500, item_decode=3100, block_decode=860, streaming_ctas=57)
    rng = np.random.default_rng(seed)
    items = np.zeros(150, ITEM_DTYPE)
    items["flags"] = np.arange(150) >= 60
    items["block_begin"] = rng.integers(0, 5, 150)
    items["block_end"] = items["block_begin"] + rng.integers(1, 33, 150)
    config = np.zeros(1, CONFIG_DTYPE)
    config["num_ctas"], config["num_heads_kv"] = ctas, heads
    header = np.zeros(1, HEADER_DTYPE)
    header["config"], header["num_front_ctas"], header["num_items"] = config, front, len(items)
    queue = simulate_queue(header[0], costs.of(items))
    tasks = np.zeros(len(queue.task), RECORD_DTYPE)
    tasks["item"], tasks["kv_head"] = np.divmod(queue.task, heads)
    tasks["sm"], tasks["end_ns"] = queue.cta, queue.end
    early = rng.integers(0, 2000, len(tasks))  # tasks are taken while those before run
    tasks["begin_ns"] = np.maximum(0, queue.start - early)
    call = TracedCall(header[0], items, tasks)
    assert call.foreseen(costs.of(items)) == call.nanoseconds
    samples = call.samples(num_sms=ctas)
    assert len(samples) == len(tasks) - ctas
    bytes_per_second = 56.5 * 65536 / 860e-9
    assert fit(samples, 65536, bytes_per_second, ctas) == costs
    noisy = samples + rng.normal(0, 100, samples.shape) * [0, 0, 1]
    found = fit(noisy, 65536, bytes_per_second, ctas)
    assert found.block == pytest.approx(costs.block, rel=0.02) and found.item == pytest.approx(costs.item, rel=0.1)
    assert (
        table_row("sm90_d128", "NVIDIA H200", costs) == '{kKernelSm90D128, "NVIDIA H200", {2500, 1500, 3100, 860, 57}},'
    )


@needs_host
@pytest.mark.skipif(not varattn.is_supported("cpu"), reason="the varattn library is not built")
def test_dry_run_of_the_calibration():
    command = [sys.executable, str(BENCHMARKS / "calibrate.py"), "--device", "cpu", "--head-dim", "64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '{kKernelCpu, "", {' in done.stdout


@pytest.mark.gpu
def test_a_step_on_a_gpu(tmp_path):
    arguments = ["--cases", "decode b16 k8k, p16", "--seconds", "0.2", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench.py"), *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert 0.5 * row["floor"] < row["times"]["varattn"]["median"], "faster than the memory is"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--cases", "no such step"], "no step matches"),
        (["--device", "cpu", "--fa3", "missing.so"], "takes --device cuda"),
    ],
)
def test_bench_refuses(arguments, message):
    command = [sys.executable, str(BENCHMARKS / "bench.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert message in done.stdout
