"""Hundreds of random calls over the cross product of features, against float64."""

import random

import pytest
from cases import NUM_SPLITS_DEFAULT_BOUND, assert_matches_reference, make_inputs, make_plan, random_case, run

CASES_OF_A_TEST = 40


@pytest.mark.parametrize("part", range(16))
def test_random_calls_match_float64(device, seed, part):
    for _ in range(CASES_OF_A_TEST):
        x = make_inputs(random_case(device), device)
        out, lse = run(x)
        assert_matches_reference(x, out, lse)


@pytest.mark.parametrize("num_splits", [0, 1, 2, 3, 7, 64, 256])
def test_few_long_sequences_split(device, seed, num_splits):
    """Every split count up to the bound, with all other features at random."""
    for _ in range(8):
        case = random_case(device)
        group = random.choice([1, 2, 5, 8, 16])
        case.num_heads_kv = random.choice([1, 2])
        case.num_heads_q = group * case.num_heads_kv
        case.q_lens = [random.choice([1, 1, 2, 4]) for _ in range(random.randint(1, 3))]
        case.kv_lens = [random.randint(1500, 6000) for _ in case.q_lens]
        case.num_splits = num_splits
        case.batch_invariant = False
        x = make_inputs(case, device)
        assert_matches_reference(x, *run(x))
        splits = make_plan(x).items()["num_splits"].max()
        assert splits <= (num_splits or NUM_SPLITS_DEFAULT_BOUND)
        if num_splits != 1 and case.window_size == (-1, -1):
            assert splits > 1


@pytest.mark.parametrize("num_splits", [0, 2, 3, 7, 40])
def test_few_long_prefills_split(device, seed, num_splits):
    """Split tiles of many rows, which merge in another way than decodes, with all other features at random."""
    for _ in range(6):
        case = random_case(device)
        case.num_heads_kv, case.num_heads_q = 1, random.choice([1, 2, 4])
        case.q_lens = [random.randint(17, 130) for _ in range(random.randint(1, 2))]
        case.kv_lens = [random.randint(3000, 8000) for _ in case.q_lens]
        case.num_splits = num_splits
        case.batch_invariant = False
        x = make_inputs(case, device)
        assert_matches_reference(x, *run(x))
        if device != "cpu" and case.window_size == (-1, -1):
            items = make_plan(x).items()
            assert items["num_splits"][items["row_end"] - items["row_begin"] > 16].max() > 1
