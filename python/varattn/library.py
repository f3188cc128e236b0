"""Loads the ops, torch.ops.varattn, and gives them fake kernels and their word on autograd."""

from __future__ import annotations

from pathlib import Path

import torch

LIBRARY_PATH = Path(__file__).with_name("_C.abi3.so")

_NO_BACKWARD = (
    "{}: backward: varattn computes no gradients; call it under torch.no_grad(), or detach q, k, v and sinks "
    "(torch.nn.functional.scaled_dot_product_attention has a backward)"
)


def _load() -> Exception | None:
    try:
        torch.ops.load_library(LIBRARY_PATH)
    except (OSError, RuntimeError) as error:
        return error
    return None


_load_error = _load()


def require_library() -> None:
    """Raises ImportError, saying why, if the ops could not be loaded."""
    if _load_error is None:
        return
    if not LIBRARY_PATH.exists():
        raise ImportError(f"varattn: {LIBRARY_PATH} is missing: build it with `make build` (or `pip install .`)")
    raise ImportError(
        f"varattn: {LIBRARY_PATH} does not load under PyTorch {torch.__version__}, which must be 2.10 or newer: "
        f"{_load_error}"
    )


def _fake_mha_varlen(q, k, v, cu_seqlens_q, **_):
    out = q.new_empty((q.shape[0], q.shape[1], v.shape[-1]))
    return out, q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _fake_nothing(*_, **__):
    return None


def _fake_plan(cu_seqlens_q, *, max_total_q, seqused_k=None, cu_seqlens_k=None, **options):
    max_seqs = cu_seqlens_q.shape[0] - 1
    if isinstance(max_seqs, int) and isinstance(max_total_q, int):
        size = torch.ops.varattn.plan_size(max_seqs, max_total_q, device=cu_seqlens_q.device, **options)
    else:  # capacities that are symbols have a size that only the library knows
        size = torch.library.get_ctx().new_dynamic_size()
    return cu_seqlens_q.new_empty((size,), dtype=torch.uint8)


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *inputs):
        return call()

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(_NO_BACKWARD.format("mha_varlen"))


def _autograd_mha_varlen(keyset, *args, **kwargs):
    op = torch.ops.varattn.mha_varlen.default

    def call():
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

    inputs = (*args[:3], kwargs.get("sinks"))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _NoBackward.apply(call, *inputs)
    return call()


def _autograd_mha_varlen_out(keyset, *args, **kwargs):
    inputs = (*args[:3], kwargs.get("sinks"), kwargs["out"], kwargs.get("lse"))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        raise NotImplementedError(_NO_BACKWARD.format("mha_varlen.out"))
    with torch._C._AutoDispatchBelowAutograd():
        op = torch.ops.varattn.mha_varlen.out
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)


def _register() -> None:
    torch.library.register_fake("varattn::mha_varlen", _fake_mha_varlen)
    torch.library.register_fake("varattn::mha_varlen.out", _fake_nothing)
    torch.library.register_fake("varattn::plan", _fake_plan)
    torch.library.register_fake("varattn::plan.out", _fake_nothing)
    _library.impl("mha_varlen", _autograd_mha_varlen, "Autograd", with_keyset=True)
    _library.impl("mha_varlen.out", _autograd_mha_varlen_out, "Autograd", with_keyset=True)


if _load_error is None:
    # Registrations last as long as this object.
    _library = torch.library.Library("varattn", "IMPL")
    _register()
