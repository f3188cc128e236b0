"""Fixtures of every test: the device, a seed that is printed when a test fails."""

from __future__ import annotations

import os
import random

import pytest
import torch

import varattn

# "cuda": the device alone, and a missing one is an error. Unset: the CPU, and CUDA where there is one.
_ONLY_DEVICE = os.environ.get("VARATTN_TEST_DEVICE")


def _why_no_gpu() -> str:
    if not torch.cuda.is_available():
        return "no GPU: torch.cuda.is_available() is False"
    if not varattn.is_supported("cuda"):
        return "this build of varattn does not run on the GPU: varattn.is_supported('cuda') is False"
    return ""


def pytest_configure(config):
    if _ONLY_DEVICE == "cuda" and _why_no_gpu():
        raise pytest.UsageError(f"VARATTN_TEST_DEVICE=cuda: {_why_no_gpu()}")


def pytest_collection_modifyitems(items):
    why = _why_no_gpu()
    for item in items:
        if why and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=why))


_CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=[_CUDA] if _ONLY_DEVICE == "cuda" else ["cpu", _CUDA])
def device(request) -> str:
    return request.param


@pytest.fixture
def seed() -> int:
    """A fresh seed, or VARATTN_SEED, for random and torch."""
    value = int(os.environ.get("VARATTN_SEED", random.SystemRandom().randrange(1 << 31)))
    print(f"seed: VARATTN_SEED={value}")
    random.seed(value)
    torch.manual_seed(value)
    return value
