"""The trace of a call: one record a task, in order on its thread, and what is made of it."""

import json

import numpy as np
import pytest
import torch
from cases import Case, make_inputs, make_plan

import varattn
from varattn import timeline


def traced(device, num_records=None):
    # Long enough to be split; KV heads of their own.
    case = Case([1, 40, 3], [3000, 90, 700], num_heads_q=4, num_heads_kv=2)
    x = make_inputs(case, device)
    plan = make_plan(x)
    num_tasks = len(plan.items()) * case.num_heads_kv
    buffer = timeline.trace_buffer(3 * num_tasks if num_records is None else num_records, device)
    out = varattn.mha_varlen(*x.tensors, **x.lengths, **case.shared_options(), plan=plan, trace=buffer)
    want = varattn.mha_varlen(*x.tensors, **x.lengths, **case.shared_options(), plan=plan)
    assert torch.equal(out, want)
    return plan, num_tasks, timeline.read(buffer)


def test_every_task_is_there_once_and_those_of_a_place_follow_each_other(device, seed):
    plan, num_tasks, actual = traced(device)
    assert actual.num_dropped == 0
    tasks = actual.tasks
    ids = tasks["item"].astype(int) * 2 + tasks["kv_head"]
    assert sorted(ids.tolist()) == list(range(num_tasks))
    assert actual.records["begin_ns"].min() == 0 and (tasks["end_ns"] >= tasks["begin_ns"]).all()
    if device != "cpu":  # an SM's next task begins with its loads, while this one ends; merges need not be told
        return
    for thread in np.unique(tasks["sm"]):
        mine = tasks[tasks["sm"] == thread]
        assert (mine["begin_ns"][1:] >= mine["end_ns"][:-1]).all(), "a thread does one task at a time"
    merges = actual.records[actual.records["kind"] == timeline.KINDS.index("merge")]
    assert len(merges) == int(plan.header()["num_split_tiles"]) * 2 > 0


@pytest.mark.parametrize("num_records", [0, 3])
def test_a_small_buffer_counts_what_it_drops(device, seed, num_records):
    _, num_tasks, actual = traced(device, num_records)
    assert len(actual.records) == num_records
    assert actual.num_dropped >= num_tasks - num_records


def test_chrome_trace_and_picture(device, seed, tmp_path):
    pytest.importorskip("matplotlib")
    plan, num_tasks, actual = traced(device)
    timeline.write_chrome(tmp_path / "t.json", plan, actual)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    for process in (1, 2):
        tasks = [e for e in events if e["ph"] == "X" and e["pid"] == process and e["cat"] == "task"]
        assert len(tasks) == num_tasks
        assert all(e["dur"] >= 0 and e["args"]["kv_head"] in (0, 1) for e in tasks)
    timeline.draw(tmp_path / "t.png", plan, actual, "a step")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (torch.zeros(8), "trace: got float32; takes int64"),
        (torch.zeros(2, 4, dtype=torch.int64), r"trace: got shape \(2, 4\); takes \(4 \+ 4 \* records,\)"),
        (torch.zeros(3, dtype=torch.int64), r"trace: got shape \(3,\)"),
        (torch.zeros(16, dtype=torch.int64)[::2], "trace: got strides"),
    ],
)
def test_other_buffers_are_refused(seed, buffer, message):
    x = make_inputs(Case([2], [20]), "cpu")
    with pytest.raises(RuntimeError, match=f"mha_varlen: {message}"):
        varattn.mha_varlen(*x.tensors, **x.lengths, trace=buffer)
    with pytest.raises(ValueError, match="num_records: got -1"):
        timeline.trace_buffer(-1, "cpu")
