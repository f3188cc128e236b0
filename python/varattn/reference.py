"""The operator in plain PyTorch, in float64: slow, short, and what every kernel is tested against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_MAX_SCORES = 1 << 25  # scores held at once


def mha_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    *,
    cu_seqlens_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    sequences: Iterable[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """The float64 result of varattn.mha_varlen, whose arguments these are.

    Lengths that are out of range are taken as the planner takes them: offsets rise from 0 to the rows of q, keys past
    the block table or past k are absent, pages out of range hold zeros (all keys are absent if there is no page).

    Args:
        sequences: compute only these; rows of the others are 0 and -inf.

    Returns:
        out (total_q, num_heads_q, head_dim_v) and lse (num_heads_q, total_q), float64, on the device of q.
    """
    total_q, num_heads_q, head_dim = q.shape
    out = torch.zeros(total_q, num_heads_q, v.shape[-1], dtype=torch.float64, device=q.device)
    lse = torch.full((num_heads_q, total_q), -torch.inf, dtype=torch.float64, device=q.device)
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    window = (window_size[0], 0 if causal else window_size[1])
    sink = None if sinks is None else sinks.double()
    offsets_q = _rising(cu_seqlens_q, total_q)
    num_seqs = len(offsets_q) - 1
    for i in range(num_seqs) if sequences is None else sequences:
        begin, end = offsets_q[i], offsets_q[i + 1]
        keys, values, kv_len = _keys_of(i, k, v, cu_seqlens_k, seqused_k, block_table)
        step = max(1, _MAX_SCORES // max(1, num_heads_q * keys.shape[0]))
        for row in range(begin, end, step):
            rows = slice(row, min(row + step, end))
            # The row of the last query is kv_len - 1; keys.shape[0] < kv_len where keys are absent.
            diagonal = torch.arange(rows.start, rows.stop, device=q.device) - end + kv_len
            visible = _visible(diagonal, keys.shape[0], window)
            out[rows], lse[:, rows] = _attend(q[rows].double(), keys, values, visible, scale, softcap, sink)
    return out, lse


def _attend(q, keys, values, visible, scale, softcap, sink):
    num_heads_q, num_heads_kv = q.shape[1], keys.shape[1]
    group = num_heads_q // num_heads_kv
    grouped = q.view(q.shape[0], num_heads_kv, group, q.shape[2])
    scores = torch.einsum("thgd,khd->hgtk", grouped, keys).flatten(0, 1) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -torch.inf)
    if sink is not None:
        lse = torch.logaddexp(lse, sink[:, None].expand_as(lse))
    weights = torch.exp(scores - lse.nan_to_num(neginf=0.0)[..., None])
    weights = weights.unflatten(0, (num_heads_kv, group))
    values = values.where(visible.any(dim=0)[:, None, None], 0.0)  # what no row sees may be NaN
    return torch.einsum("hgtk,khd->thgd", weights, values).flatten(1, 2), lse


def _visible(diagonal, num_keys, window):
    key = torch.arange(num_keys, device=diagonal.device)
    visible = torch.ones(len(diagonal), num_keys, dtype=torch.bool, device=diagonal.device)
    if window[0] >= 0:
        visible &= key >= diagonal[:, None] - window[0]
    if window[1] >= 0:
        visible &= key <= diagonal[:, None] + window[1]
    return visible


def _rising(offsets, limit):
    rising, last = [], 0
    for x in offsets.tolist():
        last = max(last, min(max(x, 0), limit))
        rising.append(last)
    return rising


def _keys_of(i, k, v, cu_seqlens_k, seqused_k, block_table):
    """Keys and values of sequence i that are there, and its length as given."""
    if block_table is None:
        offsets = _rising(cu_seqlens_k, 2**31 - 1)
        begin, kv_len = offsets[i], offsets[i + 1] - offsets[i]
        if seqused_k is not None:
            kv_len = min(max(int(seqused_k[i]), 0), kv_len)
        rows = slice(min(begin, k.shape[0]), min(begin + kv_len, k.shape[0]))
        return k[rows].double(), v[rows].double(), kv_len
    kv_len = max(int(seqused_k[i]), 0)
    page_size = k.shape[1]
    num_pages = min(math.ceil(kv_len / page_size), block_table.shape[1] if k.shape[0] else 0)
    pages = block_table[i, :num_pages].long()
    known = (pages >= 0) & (pages < k.shape[0])
    num_keys = min(kv_len, num_pages * page_size)

    def gather(cache):
        rows = cache.new_zeros(num_pages, *cache.shape[1:])
        rows[known] = cache[pages[known]]
        return rows.flatten(0, 1)[:num_keys].double()

    return gather(k), gather(v), kv_len
