"""The operator and its planner, as Python functions over torch.ops.varattn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varattn.library import require_library
from varattn.planner import Plan, PlanKey

_ops = torch.ops.varattn


def mha_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    *,
    cu_seqlens_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    plan: Plan | None = None,
    workspace: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    num_splits: int = 0,
    batch_invariant: bool = False,
    sm_margin: int = 0,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    return_lse: bool = False,
    leave_padding: bool = False,
    trace: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of a packed batch of sequences over a packed or paged KV cache, in one launch on the current stream.

    Sequence i is rows q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]] against its keys. Lengths are read on the device alone.

    Args:
        q: (total_q, num_heads_q, head_dim). bfloat16 or float16; float32 too on the CPU. Any strides but of the last
            dim, which is contiguous; on CUDA, address and strides are multiples of 16 bytes. head_dim is a multiple
            of 8 up to 256 (CPU: 512).
        k, v: packed: (total_k, num_heads_kv, head_dim), (total_k, num_heads_kv, head_dim_v) with cu_seqlens_k. Paged:
            (num_pages, page_size, num_heads_kv, head_dim or head_dim_v) with block_table and seqused_k; any page_size.
            Strides as of q: both NHD and HND caches, and interleaved K and V, are views that need no copy. num_heads_q
            is a multiple of num_heads_kv.
        cu_seqlens_q: (num_seqs + 1,) int32, rising: offsets in rows of q.
        cu_seqlens_k: (num_seqs + 1,) int32, rising: offsets in rows of packed k and v.
        seqused_k: (num_seqs,) int32: keys of each sequence. With cu_seqlens_k: only its first so many keys count.
        block_table: (num_seqs, max_pages) int32: pages of each sequence. Entries past its length are never read.
        plan: of varattn.plan(), made for the same heads, dims, dtype, mask, number of sequences and kinds of lengths
            (PlanError if not), and for the lengths of this step: with a plan, lengths are those that it was made from,
            and the values of cu_seqlens_q, cu_seqlens_k and seqused_k are not read again. None: the call plans for
            itself.
        workspace: (varattn.workspace_size(),) uint8, zeroed once by its owner; each call leaves it zeroed where it must
            be. One for each stream in use. None: the call allocates one.
        softmax_scale: of q @ k.T; None: head_dim ** -0.5.
        causal: a query sees keys up to its own, the last query ends at the last key (bottom-right aligned).
        window_size: (left, right): keys seen to the left and right of a query's own, -1: all. causal sets right to 0.
        softcap: above 0: scores become softcap * tanh(score / softcap).
        sinks: (num_heads_q,) float32 or bfloat16: a logit for each head that adds to the denominator alone. bfloat16 is
            converted in every call; float32 is taken as it is.
        num_splits: the upper bound on the pieces that a tile's keys are cut into. 0: the default bound; 1: never.
        batch_invariant: a sequence's bits don't depend on the other sequences. num_splits=0 then means never, which
            is slow for a few long sequences. A bound above 1 splits them where the kernel can (on Hopper), and costs
            other batches a little (docs/architecture.md); its bits are others than without, and the same for all such
            bounds.
        sm_margin: SMs to leave free.
        out: (total_q, num_heads_q, head_dim_v) of q's dtype, to write to. None: allocated.
        lse: (num_heads_q, total_q) float32, to write to; only with out.
        return_lse: also return the LSE.
        leave_padding: don't write rows of out and lse that belong to no sequence.
        trace: a buffer of varattn.timeline.trace_buffer(), into which the call writes what ran where, and when.

    Returns:
        out, or (out, lse): lse is the natural log of the softmax denominator, the sink included. A query that sees no
        key gives 0 and -inf (with a sink: 0 and the sink). Rows past cu_seqlens_q[-1] give 0 and -inf.

    Raises:
        RuntimeError: an argument is refused; the message names it, what it got and what it takes.
        TypeError: an argument is of another type; or lse is given without out.
        PlanError: the plan was made for something else. (If its buffer has been written by a later plan since: on the
            CPU RuntimeError; on CUDA the kernel computes nothing, and sets the status.)
        NotImplementedError: in backward; under torch.compile where it is traced with inputs that require gradients.

    Bad values on the device (offsets that fall, lengths past the table, wild page ids) never fault: they have a defined
    result (docs/architecture.md) and set the plan's status, which varattn.check() reads.
    """
    require_library()
    _require_types(q, k, v, cu_seqlens_q, window_size)
    max_total_q = None
    if plan is not None:
        if not isinstance(plan, Plan):
            raise TypeError(
                f"mha_varlen: plan: got {type(plan).__name__}; takes a varattn.Plan, which varattn.plan() returns"
            )
        # Arguments that are malformed are refused by the op.
        if q.dim() == 3 and k.dim() > 1 and v.dim() > 0 and cu_seqlens_q.dim() == 1 and len(window_size) == 2:
            heads = (q.shape[1], k.shape[-2], q.shape[2], v.shape[-1], q.dtype)
            mask = visible_window(window_size, causal)
            schedule = (num_splits, batch_invariant, sm_margin)
            lengths = (cu_seqlens_q.shape[0] - 1, block_table is None, seqused_k is not None)
            plan.require(PlanKey(*heads, *mask, *schedule, *lengths))
        max_total_q = plan.max_total_q
    # A quarter of a call's host time goes by the number of arguments: those that are the op's defaults stay out.
    options = {
        name: value
        for name, value in (
            ("cu_seqlens_k", cu_seqlens_k),
            ("seqused_k", seqused_k),
            ("block_table", block_table),
            ("plan", None if plan is None else plan.buffer),
            ("workspace", workspace),
            ("softmax_scale", softmax_scale),
            ("causal", causal or None),
            ("window_size", None if window_size == (-1, -1) else window_size),
            ("softcap", softcap or None),
            ("sinks", sinks),
            ("num_splits", num_splits or None),
            ("batch_invariant", batch_invariant or None),
            ("sm_margin", sm_margin or None),
            ("max_total_q", max_total_q),
            ("leave_padding", leave_padding or None),
            ("trace", trace),
        )
        if value is not None
    }
    if out is None and lse is not None:
        raise TypeError("mha_varlen: lse: got a tensor without out; takes None, or a tensor together with out")
    if out is not None and return_lse and lse is None:
        lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    # Where no gradient is asked for, the call skips the ops' autograd kernels, which are in Python, and slow.
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and _any_requires_grad(q, k, v, sinks, out)):
        out, lse = _call(q, k, v, cu_seqlens_q, options, out, lse)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = _call(q, k, v, cu_seqlens_q, options, out, lse)
    return (out, lse) if return_lse else out


def _require_types(q, k, v, cu_seqlens_q, window_size) -> None:
    """Refuses what the op would take for something else, or refuse without a name."""
    if isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor) and isinstance(cu_seqlens_q, Tensor):
        return _require_window("mha_varlen", window_size)
    for name, value in zip(("q", "k", "v", "cu_seqlens_q"), (q, k, v, cu_seqlens_q), strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"mha_varlen: {name}: got {type(value).__name__}; takes a tensor")


def _require_window(function: str, window_size) -> None:
    """Of more or fewer numbers, the op refuses it."""
    if not isinstance(window_size, (tuple, list)):
        raise TypeError(f"{function}: window_size: got {window_size!r}; takes (left, right)")


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    for t in tensors:  # any() of a generator takes twice as long
        if getattr(t, "requires_grad", False):
            return True
    return False


def _call(q, k, v, cu_seqlens_q, options, out, lse):
    if out is None:
        return _ops.mha_varlen.default(q, k, v, cu_seqlens_q, **options)
    options["out"] = out
    if lse is not None:
        options["lse"] = lse
    _ops.mha_varlen.out(q, k, v, cu_seqlens_q, **options)
    return out, lse


def plan(
    cu_seqlens_q: Tensor,
    *,
    seqused_k: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_total_q: int,
    num_heads_q: int,
    num_heads_kv: int,
    head_dim: int,
    head_dim_v: int | None = None,
    dtype: torch.dtype,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    num_splits: int = 0,
    batch_invariant: bool = False,
    sm_margin: int = 0,
    out: Tensor | Plan | None = None,
) -> Plan:
    """Plans a step on the device of cu_seqlens_q: one launch on the current stream, no sync. Serves every layer of the
    step whose heads, dims, dtype and mask are these.

    Args:
        cu_seqlens_q: (num_seqs + 1,) int32, rising: offsets in rows of q.
        seqused_k: (num_seqs,) int32: keys of each sequence. Alone: for a paged cache.
        cu_seqlens_k: (num_seqs + 1,) int32: offsets in rows of packed k and v. With seqused_k: only the first so many
            keys of each range count.
        max_total_q: the most rows of q that a call with this plan may have.
        out: (varattn.plan_size(),) uint8 to write to, or an earlier plan, whose buffer is written again (in a captured
            graph, say) and which must not be used any more. None: allocated.
        others: as of varattn.mha_varlen; head_dim_v None: head_dim.

    Raises:
        RuntimeError: an argument is refused; the message names it, what it got and what it takes.
        TypeError: window_size is not a pair.
    """
    require_library()
    _require_window("plan", window_size)
    options = dict(
        seqused_k=seqused_k,
        cu_seqlens_k=cu_seqlens_k,
        max_total_q=max_total_q,
        num_heads_q=num_heads_q,
        num_heads_kv=num_heads_kv,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        dtype=dtype,
        causal=causal,
        window_size=window_size,
        num_splits=num_splits,
        batch_invariant=batch_invariant,
        sm_margin=sm_margin,
    )
    if out is None:
        buffer = _ops.plan.default(cu_seqlens_q, **options)
    else:
        buffer = out.buffer if isinstance(out, Plan) else out
        _ops.plan.out(cu_seqlens_q, **options, out=buffer)
    heads = (num_heads_q, num_heads_kv, head_dim, head_dim if head_dim_v is None else head_dim_v, dtype)
    schedule = (num_splits, batch_invariant, sm_margin)
    lengths = (cu_seqlens_q.shape[0] - 1, cu_seqlens_k is not None, seqused_k is not None)
    return Plan(buffer, PlanKey(*heads, *visible_window(window_size, causal), *schedule, *lengths), max_total_q)


def plan_many(
    cu_seqlens_q: Tensor,
    *,
    window_sizes: Sequence[Sequence[int]],
    out: Sequence[Tensor | Plan] | None = None,
    **options,
) -> list[Plan]:
    """Plans of one step for layers that differ in their window: one for each of window_sizes, a launch each.

    A layer takes the plan that was made for its window: any other is refused by name.

    Args:
        window_sizes: (left, right) of each plan.
        out: a buffer for each plan. None: allocated.
        options: all others of varattn.plan.
    """
    if out is None:
        out = [None] * len(window_sizes)
    elif len(out) != len(window_sizes):
        raise ValueError(f"plan_many: out: got {len(out)} buffers; takes one for each of {len(window_sizes)} windows")
    return [plan(cu_seqlens_q, window_size=w, out=o, **options) for w, o in zip(window_sizes, out, strict=True)]


def plan_size(
    max_seqs: int,
    max_total_q: int,
    num_heads_q: int,
    num_heads_kv: int,
    head_dim: int,
    head_dim_v: int | None = None,
    *,
    dtype: torch.dtype,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    num_splits: int = 0,
    batch_invariant: bool = False,
    sm_margin: int = 0,
    device: torch.device | str,
) -> int:
    """Bytes of a plan's buffer: a function of capacity alone, never of lengths.

    Args:
        max_seqs: sequences of a step (rows of block_table).
        device: where the plan lives.
        others: as of varattn.plan.
    """
    require_library()
    return _ops.plan_size(
        max_seqs,
        max_total_q,
        num_heads_q,
        num_heads_kv,
        head_dim,
        head_dim_v,
        dtype=dtype,
        causal=causal,
        window_size=window_size,
        num_splits=num_splits,
        batch_invariant=batch_invariant,
        sm_margin=sm_margin,
        device=_device_of("plan_size", device),
    )


def workspace_size(
    max_seqs: int,
    max_total_q: int,
    num_heads_q: int,
    num_heads_kv: int,
    head_dim: int,
    head_dim_v: int | None = None,
    *,
    dtype: torch.dtype,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    num_splits: int = 0,
    batch_invariant: bool = False,
    sm_margin: int = 0,
    device: torch.device | str,
) -> int:
    """Bytes of a workspace: bounded by the SMs of the device, whatever the batch. Arguments as of varattn.plan_size.

    A workspace belongs to a stream, not to a config: one that is large enough, zeroed once, serves any calls in turn.
    """
    require_library()
    return _ops.workspace_size(
        max_seqs,
        max_total_q,
        num_heads_q,
        num_heads_kv,
        head_dim,
        head_dim_v,
        dtype=dtype,
        causal=causal,
        window_size=window_size,
        num_splits=num_splits,
        batch_invariant=batch_invariant,
        sm_margin=sm_margin,
        device=_device_of("workspace_size", device),
    )


def is_supported(device: torch.device | str | None = None) -> bool:
    """Whether varattn runs on a device (None: CUDA if PyTorch has it, else the CPU). Never raises."""
    try:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return plan_size(1, 1, 1, 1, 64, dtype=torch.bfloat16, device=device) > 0
    except Exception:  # whatever is wrong with the device or the library: it is not supported
        return False


def _device_of(function: str, device: torch.device | str) -> torch.device:
    device = torch.device(device)
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise RuntimeError(f"{function}: device: got {device}; takes cpu or cuda, where PyTorch has it")
    return device


def visible_window(window_size: Sequence[int], causal: bool) -> tuple[int, int]:
    """The window that a mask amounts to: causal ends it at the query's own key."""
    return window_size[0], 0 if causal else window_size[1]
