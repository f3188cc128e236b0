"""The planner as a host library: lists in, work items out, for any device, without one. For tests, tools and engine
authors who want to look inside a plan.

It needs varattn._host, a module built with pybind11 for one version of Python; the rest of varattn does without.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from varattn.planner import decode_header, decode_items

try:
    from varattn import _host
except ImportError as error:
    raise ImportError(
        f"varattn.host: the module varattn._host was not built for Python {sys.version_info[0]}.{sys.version_info[1]}: "
        "build varattn from source with this Python (`make build`, or `pip install .`), its headers (python3-dev) and "
        "pybind11"
    ) from error

describe_status = _host.describe_status
struct_layouts = _host.struct_layouts


class Device(NamedTuple):
    """A device to plan for.

    compute_capability is major * 10 + minor; None: the CPU backend. name, as torch.cuda.get_device_name gives it, picks
    the costs that were measured on such a device, if they were.
    """

    compute_capability: int | None = None
    num_sms: int = 0
    name: str = ""


CPU = Device()
H100 = Device(90, 132)


def device_of(device: torch.device | str) -> Device:
    """What the planner sees of a device of PyTorch's."""
    device = torch.device(device)
    if device.type == "cpu":
        return CPU
    p = torch.cuda.get_device_properties(device)
    return Device(p.major * 10 + p.minor, p.multi_processor_count, p.name)


class HostPlan(NamedTuple):
    header: np.void  # of varattn.planner.HEADER_DTYPE
    items: np.ndarray  # (num_items,) of varattn.planner.ITEM_DTYPE, in the order of the queue
    buffer: bytes  # as the planner op writes it


def kernels() -> list[dict]:
    """The kernel table: which kernel serves which device and shape, how its work is cut."""
    return _host.kernels()


def plan(
    cu_seqlens_q: Sequence[int],
    *,
    seqused_k: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
    max_total_q: int | None = None,
    num_heads_q: int,
    num_heads_kv: int,
    head_dim: int,
    head_dim_v: int | None = None,
    dtype: str = "bfloat16",
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    num_splits: int = 0,
    batch_invariant: bool = False,
    sm_margin: int = 0,
    device: Device = CPU,
) -> HostPlan:
    """As varattn.plan, for lengths in lists. max_total_q None: the last of cu_seqlens_q.

    Raises:
        ValueError: an argument is refused.
    """
    buffer = _host.plan(
        list(cu_seqlens_q),
        seqused_k=None if seqused_k is None else list(seqused_k),
        cu_seqlens_k=None if cu_seqlens_k is None else list(cu_seqlens_k),
        max_total_q=max([0, *cu_seqlens_q[-1:]]) if max_total_q is None else max_total_q,
        num_heads_q=num_heads_q,
        num_heads_kv=num_heads_kv,
        head_dim=head_dim,
        head_dim_v=head_dim_v or 0,
        dtype=dtype,
        causal=causal,
        window_size=window_size,
        num_splits=num_splits,
        batch_invariant=batch_invariant,
        sm_margin=sm_margin,
        compute_capability=-1 if device.compute_capability is None else device.compute_capability,
        num_sms=device.num_sms,
        device_name=device.name,
    )
    return HostPlan(decode_header(buffer), decode_items(buffer), buffer)
