"""The simulated queue and the picture of a schedule."""

import numpy as np
import pytest

from varattn.picture import draw_schedule, item_kinds, simulate_queue

FIELDS = [(name, np.int32) for name in ("flags", "q_len", "num_splits", "cost")]


def test_queue_runs_every_task_once_from_both_ends(seed):
    rng = np.random.default_rng(seed)
    for _ in range(30):
        costs = rng.integers(1, 1000, rng.integers(0, 200))
        heads, ctas = int(rng.integers(1, 5)), int(rng.integers(1, 40))
        front = int(rng.integers(0, ctas + 1))
        s = simulate_queue(costs, heads, ctas, front)
        assert sorted(s.task) == list(range(len(costs) * heads))
        from_front = s.cta < front
        assert list(s.task[from_front]) == sorted(s.task[from_front])
        assert list(s.task[~from_front]) == sorted(s.task[~from_front], reverse=True)
        for cta in range(ctas):
            mine = s.cta == cta
            assert (s.start[mine][1:] == s.end[mine][:-1]).all(), "a CTA neither idles nor does two things at once"
        assert s.makespan <= costs.sum() * heads / ctas + (costs.max() if len(costs) else 0)
        assert 0 < s.balance <= 1


def test_queue_by_hand():
    s = simulate_queue(np.array([5, 1, 1, 4]), 1, 2, 1)  # CTA 0 takes 5; CTA 1 takes 4, 1, 1
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
    schedule = draw_schedule(path, items, num_heads_kv=2, num_ctas=16, num_front_ctas=9, title="a step")
    assert schedule.num_ctas == 16
    assert path.read_bytes().startswith(b"\x89PNG")
    draw_schedule(path, items[:0], num_heads_kv=2, num_ctas=16, num_front_ctas=0)  # an empty step
