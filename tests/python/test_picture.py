"""The simulated queue and the picture of a schedule."""

import numpy as np
import pytest

from varattn.picture import draw_schedule, item_kinds, queue_order, simulate_queue
from varattn.planner import HEADER_DTYPE

HOPPER, PORTABLE = 2, 5  # of KernelId
FIELDS = [(name, np.int32) for name in ("flags", "q_len", "num_splits", "cost")]


def header_of(num_items, heads, ctas, front_ctas, front_items=0, section_heads=1, kernel=HOPPER):
    header = np.zeros(1, HEADER_DTYPE)[0]
    header["config"]["num_heads_kv"], header["config"]["num_ctas"], header["config"]["kernel"] = heads, ctas, kernel
    header["num_items"], header["num_front_items"], header["num_front_ctas"] = num_items, front_items, front_ctas
    header["section_heads"] = section_heads
    return header


def test_prefills_run_in_sections_on_hopper():
    three = dict(num_items=3, heads=3, ctas=1, front_ctas=1, front_items=2, section_heads=2)
    assert list(queue_order(header_of(**three))) == [0, 1, 3, 4, 2, 5, 6, 7, 8]  # heads 0 and 1 of both prefills first
    assert list(queue_order(header_of(**three, kernel=PORTABLE))) == list(range(9))
    assert list(queue_order(header_of(0, 3, 1, 1))) == []


def test_queue_runs_every_task_once_from_both_ends(seed):
    rng = np.random.default_rng(seed)
    for _ in range(30):
        costs = rng.integers(1, 1000, rng.integers(0, 200))
        heads, ctas = int(rng.integers(1, 5)), int(rng.integers(1, 40))
        front = int(rng.integers(0, ctas + 1))
        prefills, section = int(rng.integers(0, len(costs) + 1)), int(rng.integers(1, heads + 1))
        header = header_of(len(costs), heads, ctas, front, prefills, section)
        s, place = simulate_queue(header, costs), np.argsort(queue_order(header))
        assert sorted(s.task) == list(range(len(costs) * heads))
        from_front = s.cta < front
        assert list(place[s.task[from_front]]) == sorted(place[s.task[from_front]])
        assert list(place[s.task[~from_front]]) == sorted(place[s.task[~from_front]], reverse=True)
        for cta in range(ctas):
            mine = s.cta == cta
            assert (s.start[mine][1:] == s.end[mine][:-1]).all(), "a CTA neither idles nor does two things at once"
        assert s.makespan <= costs.sum() * heads / ctas + (costs.max() if len(costs) else 0)
        assert 0 < s.balance <= 1


def test_queue_by_hand():
    s = simulate_queue(header_of(4, 1, 2, 1), np.array([5, 1, 1, 4]))  # CTA 0 takes 5; CTA 1 takes 4, 1, 1
    assert list(s.task) == [0, 3, 2, 1]
    assert list(s.cta) == [0, 1, 1, 0]
    assert s.makespan == 6


def test_kinds():
    items = np.array([(0, 500, 1, 1), (0, 500, 3, 1), (1, 8, 1, 1), (0, 1, 2, 1), (0, 4, 1, 1)], dtype=FIELDS)
    assert list(item_kinds(items)) == ["prefill", "prefill, split", "decode", "decode, split", "prefill"]
    assert item_kinds(items, max_decode_tokens=4)[-1] == "decode"


def test_picture_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    items = np.array([(0, 500, 1, 3000)] * 20 + [(0, 1, 2, 800)] * 30, dtype=FIELDS)
    path = tmp_path / "schedule.png"
    schedule = draw_schedule(path, header_of(50, 2, 16, 9, 20), items, title="a step")
    assert schedule.num_ctas == 16
    assert path.read_bytes().startswith(b"\x89PNG")
    draw_schedule(path, header_of(0, 2, 16, 0), items[:0])  # an empty step
