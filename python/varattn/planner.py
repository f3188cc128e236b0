"""Plans as Python sees them: what a plan was made for, its status, and its header and work items decoded.

The numpy dtypes mirror csrc/include/varattn/plan.h; tests/python/test_plan.py compares them with the C++ structs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from varattn.library import require_library

CONFIG_FIELDS = (
    "kernel",
    "dtype",
    "num_heads_q",
    "num_heads_kv",
    "head_dim",
    "head_dim_v",
    "tile_rows",
    "tile_rows_decode",
    "block_n",
    "window_left",
    "window_right",
    "num_splits",
    "batch_invariant",
    "num_ctas",
    "max_seqs",
    "max_total_q",
)
CONFIG_DTYPE = np.dtype([(name, np.int32) for name in CONFIG_FIELDS])

HEADER_DTYPE = np.dtype(
    [
        ("magic", np.uint32),
        ("status", np.uint32),
        ("config", CONFIG_DTYPE),
        ("num_items", np.int32),
        ("num_front_items", np.int32),
        ("num_front_ctas", np.int32),
        ("num_split_tiles", np.int32),
        ("num_partial_rows", np.int32),
        ("q_begin", np.int32),
        ("q_end", np.int32),
        ("section_heads", np.int32),
        ("reserved", np.int32, 38),
    ]
)

ITEM_FIELDS = (
    "seq",
    "q_begin",
    "q_len",
    "k_begin",
    "kv_len",
    "row_begin",
    "row_end",
    "block_begin",
    "block_end",
    "split",
    "num_splits",
    "split_tile",
    "partial_row",
    "flags",
    "tile",
    "cost",
)
ITEM_DTYPE = np.dtype([(name, np.int32) for name in ITEM_FIELDS])

MAGIC = 0x56410002


class PlanError(RuntimeError):
    """A plan that was made for something else, or whose status says that something was wrong on the device."""


class PlanKey(NamedTuple):
    """What a plan is made for, as the arguments of varattn.plan say it and those of varattn.mha_varlen repeat it."""

    num_heads_q: int
    num_heads_kv: int
    head_dim: int
    head_dim_v: int
    dtype: torch.dtype
    window_left: int
    window_right: int
    num_splits: int
    batch_invariant: bool
    sm_margin: int
    num_seqs: int
    packed: bool  # K and V: planned with cu_seqlens_k
    seqused_k: bool  # planned with it


_FIELD_NAMES = {"window_left": "window_size[0]", "window_right": "window_size[1] (causal)", "packed": "cu_seqlens_k"}


class Plan:
    """The plan of one step: a buffer on its device, and what it was made for.

    Attributes:
        buffer: (bytes,) uint8, on the device of the attention. Its layout is that of csrc/include/varattn/plan.h.
        key: what it was made for.
        max_total_q: the most rows of q that a call may have.
    """

    def __init__(self, buffer: Tensor, key: PlanKey, max_total_q: int):
        self.buffer = buffer
        self.key = key
        self.max_total_q = max_total_q

    def require(self, key: PlanKey) -> None:
        """Raises PlanError, naming the first field that differs, unless the plan was made for this."""
        mine = self.key
        if torch.compiler.is_compiling():
            # To compare a size is to compile for it alone. The op, or the kernel, compares this one.
            mine, key = mine._replace(num_seqs=0), key._replace(num_seqs=0)
        if mine == key:
            return
        for name, made_for, wanted in zip(PlanKey._fields, mine, key, strict=True):
            if made_for == wanted:
                continue
            name = _FIELD_NAMES.get(name, name)
            if name in ("cu_seqlens_k", "seqused_k"):
                made, takes = ("with" if given else "without" for given in (made_for, wanted))
                raise PlanError(
                    f"mha_varlen: plan: got one made {made} {name}; takes one made {takes} it, as the call is"
                )
            raise PlanError(
                f"mha_varlen: plan: {name}: got a plan made for {made_for}; takes one made for {wanted}, "
                "as the other arguments say"
            )

    def status(self) -> int:
        """The status word (0: nothing was wrong). Synchronises."""
        return int(self.buffer[4:8].view(torch.int32).item()) & 0xFFFFFFFF

    def header(self) -> np.void:
        """A copy of the header: a record of HEADER_DTYPE, as in header["config"]["block_n"]. Synchronises."""
        return decode_header(self.buffer[: HEADER_DTYPE.itemsize].cpu().numpy().tobytes())

    def items(self) -> np.ndarray:
        """A copy of the work items: (num_items,) of ITEM_DTYPE, in the order of the queue. Synchronises."""
        begin = HEADER_DTYPE.itemsize
        end = begin + int(self.header()["num_items"]) * ITEM_DTYPE.itemsize
        return np.frombuffer(self.buffer[begin:end].cpu().numpy().tobytes(), ITEM_DTYPE)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in zip(PlanKey._fields, self.key, strict=True))
        return f"Plan({options}, max_total_q={self.max_total_q}, device={self.buffer.device})"


def check(plan: Plan) -> None:
    """Waits for the work that is queued on the plan's device and reads the plan's status.

    Raises:
        PlanError: the status is not 0; the message has a sentence for each thing that was wrong.
    """
    require_library()
    if not isinstance(plan, Plan):
        raise TypeError(f"check: plan: got {type(plan).__name__}; takes a varattn.Plan, which varattn.plan() returns")
    if plan.buffer.is_cuda:
        torch.cuda.synchronize(plan.buffer.device)
    status = plan.status()
    if status:
        raise PlanError(f"plan: status 0x{status:x}: {torch.ops.varattn.describe_status(status)}")


def decode_header(plan: bytes) -> np.void:
    """The header at the start of a plan's bytes. Raises PlanError if there is none."""
    header = np.frombuffer(plan, HEADER_DTYPE, 1)[0]
    if header["magic"] != MAGIC:
        raise PlanError(f"plan: magic: got 0x{header['magic']:x}; takes 0x{MAGIC:x}, a plan of this version")
    return header


def decode_items(plan: bytes) -> np.ndarray:
    """The work items in a plan's bytes: (num_items,) of ITEM_DTYPE."""
    return np.frombuffer(plan, ITEM_DTYPE, int(decode_header(plan)["num_items"]), HEADER_DTYPE.itemsize)
