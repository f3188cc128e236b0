"""FlashAttention-3 as vLLM builds it: `_vllm_fa3_C.abi3.so`, loaded as a library of PyTorch operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from inputs import StepInputs

SPLITS_BOUND = 32  # what vLLM fixes when it captures a graph
TWO_LAUNCHES = "two launches of FA3"


class Fa3:
    """Calls of the operators `fwd` and `get_scheduler_metadata`, by name of their arguments."""

    def __init__(self, library: Path):
        torch.ops.load_library(str(library))
        self._fwd = torch.ops._vllm_fa3_C.fwd
        self._metadata = torch.ops._vllm_fa3_C.get_scheduler_metadata

    def plan(self, x: StepInputs, num_splits: int = 0, sm_margin: int = 0) -> torch.Tensor:
        heads = x.step.heads
        return self._metadata(
            len(x.step.lengths),  # batch_size
            x.max_q,
            x.max_k,
            heads.q,
            heads.kv,
            heads.dim,
            heads.dim,  # headdim_v
            x.dtype,
            x.seqused_k,
            x.cu_seqlens_q,
            None if x.step.page_size else x.cu_seqlens_k,
            None,  # cu_seqlens_k_new
            None,  # seqused_q
            None,  # leftpad_k
            x.step.page_size or None,
            0,  # max_seqlen_k_new
            x.step.causal,
            -1,  # window_size_left
            -1,  # window_size_right
            False,  # has_softcap
            num_splits,
            None,  # pack_gqa
            sm_margin,
        )

    def attend(
        self,
        x: StepInputs,
        copy: int,
        out: torch.Tensor,
        plan: torch.Tensor | None = None,
        num_splits: int = 0,
        sm_margin: int = 0,
    ) -> None:
        k, v = x.caches[copy]
        paged = x.step.page_size > 0
        no_append = (None, None)  # k_new, v_new
        no_rotary = (None, None, None)  # cos, sin, seqlens
        no_scales = (None, None, None)  # of q, k, v
        self._fwd(
            *(x.q, k, v, *no_append, None, out, x.cu_seqlens_q),
            None if paged else x.cu_seqlens_k,
            None,  # cu_seqlens_k_new
            None,  # seqused_q
            x.seqused_k if paged else None,
            x.max_q,
            x.max_k,
            x.block_table,
            *(None, None, *no_rotary, *no_scales),  # kv_batch_idx, leftpad_k
            x.step.heads.dim**-0.5,
            x.step.causal,
            -1,  # window_size_left
            -1,  # window_size_right
            0.0,  # softcap
            True,  # is_rotary_interleaved
            plan,
            num_splits,
            None,  # pack_gqa
            sm_margin,
            None,  # s_aux
            1,  # cp_world_size
            0,  # cp_rank
            None,  # cp_tot_seqused_k
        )

    def ways(self, x: StepInputs, out: torch.Tensor, sm_margin: int) -> dict[str, Callable[[], Callable[[int], None]]]:
        """Its three ways to run a step, each as a function that makes its plan and returns the call.

        The best of them is what varattn is compared with.
        """

        def way(num_splits: int, planned: bool) -> Callable[[int], None]:
            plan = self.plan(x, num_splits, sm_margin) if planned else None
            return lambda copy: self.attend(x, copy, out, plan, num_splits, sm_margin)

        return {
            "FA3": lambda: way(0, planned=False),
            "FA3 plan": lambda: way(0, planned=True),
            f"FA3 plan {SPLITS_BOUND}": lambda: way(SPLITS_BOUND, planned=True),
        }

    def two_launches(self, x: StepInputs, out: torch.Tensor) -> dict[str, Callable[[], Callable[[int], None]]]:
        """Its ways to run a mixed step of pages as two launches, of prefills and of decodes, each planned alone."""
        lengths = x.step.lengths
        cut = next((i for i in range(1, len(lengths)) if (lengths[i][0] == 1) != (lengths[0][0] == 1)), 0)
        if cut == 0 or any((q == 1) != (lengths[-1][0] == 1) for q, _ in lengths[cut:]) or not x.step.page_size:
            return {}
        parts = [(x.part(0, cut), out[: x.q_offsets[cut]]), (x.part(cut, len(lengths)), out[x.q_offsets[cut] :])]

        def way(num_splits: int) -> Callable[[int], None]:
            plans = [self.plan(part, num_splits) for part, _ in parts]

            def attend(copy: int) -> None:
                for (part, rows), plan in zip(parts, plans, strict=True):
                    self.attend(part, copy, rows, plan, num_splits)

            return attend

        return {TWO_LAUNCHES: lambda: way(0), f"{TWO_LAUNCHES}, {SPLITS_BOUND}": lambda: way(SPLITS_BOUND)}
