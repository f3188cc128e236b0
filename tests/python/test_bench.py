"""The benchmark program: its steps, its reference, and a dry run on the CPU."""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import varattn

for package in ("typer", "rich", "matplotlib"):
    pytest.importorskip(package, reason="the benchmark needs varattn[demo]")

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


def test_titles_are_unique_and_ragged_lengths_are_fixed():
    from steps import fixed_steps, trace_steps

    steps = fixed_steps() + trace_steps(4)
    titles = [s.title for s in steps]
    assert len(set(titles)) == len(titles)
    again = {s.title: s for s in fixed_steps() + trace_steps(4)}
    assert all(again[s.title] == s for s in steps)
    assert len([s for s in steps if s.kind.startswith("trace")]) == 12


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


@pytest.mark.parametrize("page_size", [0, 16])
def test_check_finds_a_wrong_output(page_size, seed):
    from inputs import StepInputs, reference
    from steps import BenchStep, Heads

    step = BenchStep("a step", "mixed", ((5, 40), (1, 70), (30, 30)), Heads(4, 2, 16), page_size)
    x = StepInputs(step, torch.device("cpu"), seed)
    out = torch.cat(
        [
            reference(x.q[x.q_offsets[i] : x.q_offsets[i + 1]], *x.packed_kv(i, k), causal=True)
            for i, (_, k) in enumerate(step.lengths)
        ]
    ).to(x.dtype)
    error, wrong = x.check(out)
    assert not wrong and error < 0.01
    bad = out.clone()
    bad[5] *= 1.1
    assert "sequence 1, token 0" in x.check(bad)[1]
    bad[-1, 0, 0] = torch.nan
    assert "not finite" in x.check(bad)[1]


@pytest.mark.skipif(not varattn.is_supported("cpu"), reason="the varattn library is not built")
def test_dry_run(tmp_path):
    files = ["--json", tmp_path / "out.json", "--plot", tmp_path / "out.png"]
    command = [sys.executable, BENCHMARKS / "bench.py", "--device", "cpu", "--cases", "mixed|d64|trace code", *files]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert rows and all(r["problem"] == "" and r["times"]["varattn"]["median"] > 0 for r in rows)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


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
