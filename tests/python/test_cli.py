"""The command line: `varattn demo`, `varattn trace` and `varattn info`."""

import json
import re

import pytest
import torch

import varattn
from varattn import demo
from varattn.trace import Simulator, read_trace

for package in ("typer", "rich", "matplotlib"):
    pytest.importorskip(package, reason="the command line needs varattn[demo]")
CliRunner = pytest.importorskip("typer.testing").CliRunner
cli = pytest.importorskip("varattn.cli")

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
SMALL = ["--device", "cpu", "--running", "6", "--budget", "128", "--steps", "6", "--heads", "4", "--heads-kv", "2"]

needs_library = pytest.mark.skipif(not varattn.is_supported("cpu"), reason="the varattn library is not built")


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "".join(f"t,{20 + 37 * i % 200},{3 + i % 5}\n" for i in range(30)))
    return path


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    return result, re.sub(r"\s+", " ", result.output)


@needs_library
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_demo_passes_and_draws(tmp_path, trace, dtype):
    out = tmp_path / "pictures"
    result, text = run("demo", "--trace", trace, "--out", out, "--dtype", dtype, *SMALL)
    assert result.exit_code == 0, text
    assert "PASS: 6 steps" in text
    assert (out / "schedule.png").read_bytes().startswith(b"\x89PNG")


@needs_library
def test_trace_of_a_step(tmp_path, trace):
    result, text = run("trace", "--trace", trace, "--step", 4, "--out", tmp_path / "t", *SMALL[:6])
    assert result.exit_code == 0, text
    assert re.search(r"\d+ tasks in [\d.]+ us; planned: [\d.]+ us", text) and "PASS: 1 steps" in text
    events = json.loads((tmp_path / "t" / "trace.json").read_text())["traceEvents"]
    assert {e["pid"] for e in events} == {1, 2}
    assert (tmp_path / "t" / "trace.png").read_bytes().startswith(b"\x89PNG")
    result, text = run("trace", "--trace", trace, "--step", 10**6, "--out", tmp_path, *SMALL[:6])
    assert result.exit_code == 2 and "the trace ends before that step" in text


@pytest.mark.gpu
@pytest.mark.parametrize("tokens_per_decode", [1, 4])
def test_demo_on_a_gpu(tmp_path, tokens_per_decode):
    result, text = run(
        *("demo", "--device", "cuda", "--steps", 6, "--tokens-per-decode", tokens_per_decode, "--out", tmp_path)
    )
    assert result.exit_code == 0, text
    assert (tmp_path / "schedule.png").exists()


@needs_library
def test_demo_with_speculation_and_odd_pages(tmp_path, trace):
    arguments = ["--tokens-per-decode", "3", "--page-size", "5", "--skip", "3", "--head-dim", "40"]
    result, text = run("demo", "--trace", trace, "--out", tmp_path, *SMALL, *arguments)
    assert result.exit_code == 0, text


@needs_library
@pytest.mark.parametrize("excerpt", ["conv", "code"])
def test_demo_of_the_shipped_excerpts(tmp_path, excerpt):
    result, text = run("demo", "--trace", excerpt, "--out", tmp_path, *SMALL)
    assert result.exit_code == 0, text


@needs_library
@pytest.mark.parametrize("fault", ["value", "nan", "lse", "padding"])
def test_demo_fails_on_a_wrong_result(tmp_path, trace, monkeypatch, fault):
    right = varattn.mha_varlen

    def wrong(q, k, v, cu_seqlens_q, **options):
        right(q, k, v, cu_seqlens_q, **options)
        end = int(cu_seqlens_q[-1])
        if fault == "value":
            options["out"][:end] *= 1.01
        elif fault == "nan":
            options["out"][:end] = torch.nan
        elif fault == "lse":
            options["lse"][:, :end] += 0.01
        else:
            options["out"][end:] = 1.0

    monkeypatch.setattr(varattn, "mha_varlen", wrong)
    result, text = run(
        "demo", "--trace", trace, "--out", tmp_path, "--check", "6", "--skip", "0", *SMALL, "--budget", "1000"
    )
    assert result.exit_code == 1, text
    assert "FAIL: " in text
    assert "belong to no sequence" in text if fault == "padding" else "relative error" in text


@needs_library
def test_demo_reports_the_status_of_the_plan(tmp_path, trace, monkeypatch):
    def check(plan):
        raise varattn.PlanError("plan: status 0x10: a page id was out of range")

    monkeypatch.setattr(varattn, "check", check)
    result, text = run("demo", "--trace", trace, "--out", tmp_path, *SMALL)
    assert result.exit_code == 1
    assert "a page id was out of range" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("a,b\n1,2\n", "no column ContextTokens"),
        (HEADER + "t,5,-1\n", "line 2: GeneratedTokens"),
    ],
)
def test_demo_says_what_is_wrong_with_a_file(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_text(content)
    result, text = run("demo", "--trace", path, "--device", "cpu")
    assert result.exit_code == 2
    assert message in text
    assert "Traceback" not in text


@needs_library
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "3"], "num_heads_q"),
        (["--head-dim", "12"], "head_dim"),
        (["--budget", "4"], "token_budget: got 4"),
        (["--skip", "100000"], "the trace ends before"),
    ],
)
def test_demo_refuses(tmp_path, trace, arguments, message):
    result, text = run("demo", "--trace", trace, "--out", tmp_path, *SMALL, *arguments)
    assert result.exit_code == 2, text
    assert message in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_demo_without_a_gpu(trace):
    result, text = run("demo", "--trace", trace, "--device", "cuda")
    assert result.exit_code == 2
    assert "no GPU" in text


def test_info_names_versions_and_devices():
    result, text = run("info")
    assert result.exit_code == 0
    assert varattn.__version__ in text
    assert torch.__version__ in text
    assert "supported: cpu" in text


def test_unused_slots_of_the_cache_are_nan(trace):
    simulator = Simulator(read_trace(trace), max_running=4, token_budget=64, page_size=8)
    shape = demo.Shape(2, 1, 8, torch.float32, torch.device("cpu"))
    cache = demo.PagedCache(simulator.num_pages, 8, shape, torch.Generator().manual_seed(0))
    live = {}
    for step in simulator:
        cache.append(step.chunks)
        for c in step.chunks:
            k, v = cache.packed(c, c.kv_len)
            assert k.isfinite().all() and v.isfinite().all()
            live[c.request] = c
        cache.release(step.released)
        live = {i: c for i, c in live.items() if not set(c.pages) & set(step.released)}
        used = sum(c.kv_len for c in live.values())
        for part in (cache.k, cache.v):
            assert int(part.isfinite().flatten(2).all(-1).sum()) == used
