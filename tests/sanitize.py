"""A small sweep for compute-sanitizer: every path of the kernels on hostile data, each checked against float64.

`make sanitize` runs it under memcheck, or under SANITIZER_TOOL, with each of the kernels.
Without the sanitizer it is a quick test.
"""

import os
import random
import sys
from itertools import product

import torch

import varattn

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "python"))
from cases import INVARIANCE, Case, assert_matches_reference, int32, make_inputs, make_plan, run

LENGTHS = [
    ([1, 1, 1, 0, 1], [700, 1, 64, 5, 0]),  # decodes, some of them empty
    ([1, 150, 3, 1], [2000, 300, 77, 16]),  # mixed, split
    ([130], [130]),  # a prefill of more than one tile
    ([1, 33], [9000, 4200]),  # segments, where batch-invariant
]


def sweep() -> int:
    count = 0
    for dim, layout in product((64, 96, 128, 256), ("packed", 1, 3, 16, 128)):
        for q_lens, kv_lens in LENGTHS:
            paged = layout != "packed"
            case = Case(
                q_lens,
                kv_lens,
                num_heads_q=random.choice([2, 8, 10]),
                num_heads_kv=2,
                head_dim=dim,
                head_dim_v=dim,
                dtype=random.choice([torch.bfloat16, torch.float16]),
                layout="nhd" if paged else "packed",
                page_size=layout if paged else 16,
                causal=random.random() < 0.7,
                window_size=random.choice([(-1, -1), (100, 5)]),
                sinks=random.choice([None, torch.float32]),
                batch_invariant=random.random() < 0.3,
                num_splits=random.choice([0, 1, 3]),
                q_padding=random.choice([0, 7]),
            )
            x = make_inputs(case, "cuda")
            assert_matches_reference(x, *run(x))
            count += 1
    return count


def hostile() -> int:
    """Lengths and page ids that lie: only that nothing is touched out of bounds."""
    wild = [-1, -(2**31), 2**31 - 1, 64, 4096]
    for options in INVARIANCE:
        x = make_inputs(Case([1, 40, 3], [9000, 300, 77], **options), "cuda", poison=0.0)
        for _ in range(10):
            x.cu_seqlens_q.copy_(int32([random.choice([*wild, *range(45)]) for _ in range(4)], "cuda"))
            x.lengths["seqused_k"].copy_(int32([random.choice([*wild, *range(9000)]) for _ in range(3)], "cuda"))
            x.lengths["block_table"].random_(-3, 2**31 - 1)
            shared = x.case.shared_options()
            out = varattn.mha_varlen(*x.tensors, **x.lengths, plan=make_plan(x), **shared)
            assert torch.isfinite(out).all()
    return 10 * len(INVARIANCE)


if __name__ == "__main__":
    seed = int(os.environ.get("VARATTN_SEED", random.SystemRandom().randrange(1 << 31)))
    print(f"seed: VARATTN_SEED={seed}", flush=True)
    random.seed(seed)
    torch.manual_seed(seed)
    print(f"sanitize: {sweep() + hostile()} calls were right")
