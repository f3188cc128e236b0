"""The command line: `varattn demo`, `varattn trace` and `varattn info`."""

from __future__ import annotations

import platform
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

try:
    import matplotlib  # noqa: F401 (of the picture: said now rather than at the end)
    import typer
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError as error:
    raise SystemExit(f"varattn: {error}; the command line needs: pip install 'varattn[demo]'") from error

import varattn
from varattn import demo as _demo
from varattn import timeline
from varattn.library import LIBRARY_PATH, require_library
from varattn.picture import draw_schedule, item_kinds
from varattn.trace import EXCERPTS, Request, Simulator, Step, TraceError, read_trace

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Attention over variable-length batches, planned ahead of time."
)


class DeviceChoice(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class DTypeChoice(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


# What the demo runs unless told otherwise: on a GPU the shape of an 8B model, on a CPU what two cores do in seconds.
DEFAULTS = {
    "cuda": dict(steps=40, running=128, heads=32, heads_kv=8, head_dim=128, dtype="bfloat16"),
    "cpu": dict(steps=16, running=32, heads=8, heads_kv=2, head_dim=128, dtype="float32"),
}


def _fail(message: str) -> typer.Exit:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    return typer.Exit(2)


def _pick_device(choice: DeviceChoice) -> torch.device:
    has_gpu = varattn.is_supported("cuda") if torch.cuda.is_available() else False
    if choice is DeviceChoice.cuda and not has_gpu:
        raise _fail("--device cuda: no GPU that varattn supports was found; `varattn info` says what there is")
    return torch.device("cuda" if has_gpu and choice is not DeviceChoice.cpu else "cpu")


def _steps_to_half_full(requests: list[Request], running: int, budget: int) -> int:
    """Skipped by default, so that the steps shown hold decodes as well as prefills."""
    mean_prompt = sum(r.prompt for r in requests) / len(requests)
    return int(running * mean_prompt / budget / 2)


# Options that the commands share.
TraceFile = Annotated[
    str, typer.Option("--trace", help="A CSV with TIMESTAMP,ContextTokens,GeneratedTokens, or an excerpt: conv, code.")
]
DeviceOption = Annotated[DeviceChoice, typer.Option("--device", help="auto: a supported GPU if there is one.")]
Running = Annotated[int | None, typer.Option(min=1, help="Sequences running at a time.")]
Budget = Annotated[int, typer.Option(min=1, help="Query tokens of a step.")]
PageSize = Annotated[int, typer.Option(min=1, help="Tokens of a page of the KV cache.")]
HeadsQ = Annotated[int | None, typer.Option(min=1, help="Query heads.")]
HeadsKV = Annotated[int | None, typer.Option(min=1, help="KV heads.")]
HeadDim = Annotated[int | None, typer.Option(min=8, help="Head dimension.")]
DTypeOption = Annotated[DTypeChoice | None, typer.Option(help="Element type.")]
NumSplits = Annotated[int, typer.Option(min=0, help="Upper bound on splits of a tile; 0: the default.")]
TokensPerDecode = Annotated[int, typer.Option(min=1, help="Query tokens of a decode (speculation).")]
Checked = Annotated[int, typer.Option(min=1, help="Sequences verified in each step.")]
Seed = Annotated[int, typer.Option(help="Of the cache, the queries and the sampling.")]


class _Serving:
    """An engine that serves a trace, ready for its first step."""

    def __init__(
        self, trace: str, device: DeviceChoice, running: int | None, budget: int, page_size: int, heads: int | None,
        heads_kv: int | None, head_dim: int | None, dtype: DTypeChoice | None, num_splits: int, tokens_per_decode: int,
        check: int, seed: int, out: Path,
    ):  # fmt: skip
        target = _pick_device(device)
        self.defaults = defaults = DEFAULTS[target.type]
        running = running or defaults["running"]
        self.shape = _demo.Shape(
            heads or defaults["heads"],
            heads_kv or defaults["heads_kv"],
            head_dim or defaults["head_dim"],
            getattr(torch, dtype.value if dtype else defaults["dtype"]),
            target,
            num_splits,
        )
        try:
            self.requests = read_trace(EXCERPTS.get(trace, Path(trace)))
            self.simulator = Simulator(
                self.requests,
                max_running=running,
                token_budget=budget,
                page_size=page_size,
                tokens_per_decode=tokens_per_decode,
                seed=seed,
            )
        except TraceError as error:
            raise _fail(str(error)) from None
        try:
            self.runner = _demo.StepRunner(self.simulator, self.shape, checked_sequences=check, seed=seed)
        except (ImportError, ValueError, RuntimeError) as error:  # no library, or a shape that it refuses
            raise _fail(str(error).splitlines()[0]) from None
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _fail(f"--out: {out}: {error.strerror}") from None
        self.half_full = _steps_to_half_full(self.requests, running, budget)
        self.seed = seed

    def describe(self, console: Console) -> None:
        shape = self.shape
        console.print(
            f"[bold]varattn {varattn.__version__}[/] on {_device_name(shape.device)}: {len(self.requests)} requests, "
            f"{shape.num_heads_q}/{shape.num_heads_kv} heads of {shape.head_dim}, {_name(shape.dtype)}, "
            f"{self.simulator.num_pages} pages of {self.simulator.page_size} tokens, seed {self.seed}",
            highlight=False,
        )


@app.command()
def demo(
    trace: TraceFile = "conv",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to run.")] = None,
    skip: Annotated[int | None, typer.Option(min=0, help="Steps to pass over first. [default: half filled]")] = None,
    device: DeviceOption = DeviceChoice.auto,
    running: Running = None,
    budget: Budget = 2048,
    page_size: PageSize = 16,
    heads: HeadsQ = None,
    heads_kv: HeadsKV = None,
    head_dim: HeadDim = None,
    dtype: DTypeOption = None,
    num_splits: NumSplits = 0,
    tokens_per_decode: TokensPerDecode = 1,
    check: Checked = 4,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the picture of a schedule.")] = Path("varattn_demo"),
) -> None:
    """Serves a length trace: every step is planned, attended over a paged cache, and verified."""
    console = Console()
    serving = _Serving(
        trace, device, running, budget, page_size, heads, heads_kv, head_dim, dtype, num_splits, tokens_per_decode,
        check, seed, out,
    )  # fmt: skip
    steps = steps or serving.defaults["steps"]
    skip = serving.half_full if skip is None else skip
    serving.describe(console)
    results, shown = _run_steps(console, serving.simulator, serving.runner, steps, skip)
    if not results:
        raise _fail(f"--skip {skip}: the trace ends before that step")
    console.print(_result_table(results))
    picture = out / "schedule.png"
    _draw(picture, shown, serving.shape)
    console.print(f"Schedule of step {shown.index}: {picture}", highlight=False, soft_wrap=True)
    if len(results) < steps:
        console.print(f"The trace ended after {len(results)} of {steps} steps.", highlight=False)
    raise typer.Exit(_verdict(console, results, serving.shape.dtype))


@app.command()
def trace(
    trace: TraceFile = "conv",
    step: Annotated[int | None, typer.Option(min=0, help="Which step. [default: half filled]")] = None,
    device: DeviceOption = DeviceChoice.auto,
    running: Running = None,
    budget: Budget = 2048,
    page_size: PageSize = 16,
    heads: HeadsQ = None,
    heads_kv: HeadsKV = None,
    head_dim: HeadDim = None,
    dtype: DTypeOption = None,
    num_splits: NumSplits = 0,
    tokens_per_decode: TokensPerDecode = 1,
    check: Checked = 4,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for trace.json and trace.png.")] = Path("varattn_trace"),
) -> None:
    """Shows what ran where and when in one step of a trace, beside what the plan foresaw.

    Writes Chrome's trace format (chrome://tracing, ui.perfetto.dev) and a picture.
    """
    console = Console()
    serving = _Serving(
        trace, device, running, budget, page_size, heads, heads_kv, head_dim, dtype, num_splits, tokens_per_decode,
        check, seed, out,
    )  # fmt: skip
    step = serving.half_full if step is None else step
    serving.describe(console)
    for made in islice(serving.simulator, step):
        serving.runner.skip(made)
    made = serving.simulator.step()
    if made is None:
        raise _fail(f"--step {step}: the trace ends before that step")
    result, actual = serving.runner.run_traced(made)
    console.print(_result_table([result]))
    plan, name = serving.runner.plan, f"Step {step} on {_device_name(serving.shape.device)}"
    timeline.write_chrome(out / "trace.json", plan, actual, tokens_per_decode)
    planned = timeline.draw(out / "trace.png", plan, actual, name, tokens_per_decode)
    console.print(
        f"{len(actual.tasks)} tasks in {actual.nanoseconds / 1000:.1f} us; planned: {planned / 1000:.1f} us. "
        f"{out / 'trace.json'}, {out / 'trace.png'}",
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(_verdict(console, [result], serving.shape.dtype))


class _Shown:
    """The plan to draw: of the step whose prefill and decode weigh most alike."""

    def __init__(self, max_decode_tokens: int) -> None:
        self.max_decode_tokens = max_decode_tokens
        self.index, self.score, self.items, self.header = -1, -1, None, None

    def offer(self, step: Step, plan: varattn.Plan) -> None:
        items = plan.items()
        kinds = item_kinds(items, self.max_decode_tokens)
        is_decode = np.char.startswith(kinds, "decode")
        score = min(items["cost"][is_decode].sum(), items["cost"][~is_decode].sum())
        if score > self.score:
            self.index, self.score, self.items, self.header = step.index, score, items, plan.header()


def _run_steps(
    console: Console, simulator: Simulator, runner: _demo.StepRunner, steps: int, skip: int
) -> tuple[list[_demo.StepResult], _Shown]:
    results, shown = [], _Shown(simulator.tokens_per_decode)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("filling the cache", total=skip + steps)
        for step in islice(simulator, skip + steps):
            if step.index < skip:
                runner.skip(step)
            else:
                progress.update(task, description="plan, attend, verify")
                results.append(runner.run(step))
                shown.offer(step, runner.plan)
            progress.advance(task)
    return results, shown


def _result_table(results: list[_demo.StepResult]) -> Table:
    table = Table(
        title="Steps",
        caption="prefill, decode: query tokens. items: work items, each for every KV head. splits: tiles that are "
        "split. ms: the attention call. error: the worst verified row, ||row - reference|| / ||reference||.",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    for name in ("step", "seqs", "prefill", "decode", "keys", "items", "splits", "ms", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in results:
        cells = [r.step.index, len(r.step.chunks), r.step.prefill_tokens, r.step.decode_tokens]
        cells += [sum(c.kv_len for c in r.step.chunks), r.num_items, r.num_split_tiles]
        cells += [f"{r.seconds * 1e3:.2f}", f"{r.max_error:.1e}"]
        table.add_row(*map(str, cells), style="bold red" if r.problem else None)
    return table


def _draw(path: Path, shown: _Shown, shape: _demo.Shape) -> None:
    header = shown.header
    title = f"Step {shown.index} on {_device_name(shape.device)}: {int(header['num_items'])} work items"
    draw_schedule(path, header, shown.items, title, shown.max_decode_tokens)


def _verdict(console: Console, results: list[_demo.StepResult], dtype: torch.dtype) -> int:
    problems = [r.problem for r in results if r.problem]
    for problem in problems[:10]:
        console.print(f"[red]{escape(problem)}[/]", highlight=False, soft_wrap=True)
    worst = max(r.max_error for r in results)
    tokens = sum(r.step.prefill_tokens + r.step.decode_tokens for r in results)
    summary = (
        f"{len(results)} steps, {tokens} query tokens, {sum(r.num_checked for r in results)} sequences verified "
        f"against float64, worst error {worst:.1e} (limit {_demo.TOLERANCE[dtype][0]:.0e})"
    )
    verdict = f"[bold red]FAIL[/]: {len(problems)} wrong of " if problems else "[bold green]PASS[/]: "
    console.print(verdict + summary, highlight=False, soft_wrap=True)
    return 1 if problems else 0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


@app.command()
def info() -> None:
    """Versions, devices and kernels: what a bug report needs."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _collect_info():
        table.add_row(name, str(value))
    Console().print(table)


def _collect_info() -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("varattn", varattn.__version__),
        ("library", _library()),
        ("kernels", _kernels()),
        ("Python", platform.python_version()),
        ("PyTorch", f"{torch.__version__}, CUDA {torch.version.cuda or 'no'}"),
        ("system", platform.platform()),
        ("CPU threads", torch.get_num_threads()),
        ("supported: cpu", _support(torch.device("cpu"))),
    ]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        p = torch.cuda.get_device_properties(index)
        text = f"{p.name}, compute capability {p.major}.{p.minor}, {p.multi_processor_count} SMs"
        rows.append((f"cuda:{index}", f"{text}, {p.total_memory / 2**30:.0f} GiB"))
        rows.append((f"supported: cuda:{index}", _support(torch.device("cuda", index))))
    if not count:
        rows.append(("cuda", "no device"))
    return rows


def _library() -> str:
    try:
        require_library()
    except ImportError as error:
        return str(error)
    return f"{LIBRARY_PATH} ({LIBRARY_PATH.stat().st_size / 1e6:.1f} MB)"


def _kernels() -> str:
    try:
        from varattn import host
    except ImportError as error:
        return str(error)
    return ", ".join(kernel["name"] for kernel in host.kernels())


def _support(device: torch.device) -> str:
    return "yes" if varattn.is_supported(device) else "no"


def main() -> None:
    app(prog_name="varattn")


if __name__ == "__main__":
    main()
