"""The binary: what it needs, what it doesn't, and that any Python can load it."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import varattn
from varattn.library import LIBRARY_PATH

SMOKE = """
import torch, varattn
assert varattn.is_supported("cpu")
q = torch.randn(3, 2, 64); k = torch.randn(5, 1, 64); v = torch.randn(5, 1, 64)
cu = lambda *x: torch.tensor(x, dtype=torch.int32)
options = dict(cu_seqlens_k=cu(0, 4, 5), causal=True)
out, lse = varattn.mha_varlen(q, k, v, cu(0, 2, 3), **options, return_lse=True)
want, want_lse = varattn.reference.mha_varlen(q, k, v, cu(0, 2, 3), **options)
assert (out - want).abs().max() < 1e-5 and (lse - want_lse).abs().max() < 1e-5
"""


def tool(*command):
    if not shutil.which(command[0]):
        pytest.skip(f"no {command[0]} (binutils) on this machine")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_only_stable_symbols_are_needed():
    symbols = [
        line.split()[-1].split("@")[0] for line in tool("nm", "-D", "--undefined-only", LIBRARY_PATH).splitlines()
    ]
    unstable = [s for s in symbols if re.match(r"_?Py|_ZNK?(2at|3c10|5torch)|cu[A-Z]", s)]
    assert not unstable
    assert any(s.startswith("aoti_torch_") for s in symbols)


def test_no_cuda_or_python_library_and_no_path_is_needed():
    dynamic = tool("readelf", "-d", LIBRARY_PATH)
    needed = re.findall(r"NEEDED.*\[(.+?)\]", dynamic)
    assert "libtorch_cpu.so" in needed
    assert not [n for n in needed if re.match(r"libcuda|libcudart|libtorch_cuda|libpython|libtorch_python|libc10", n)]
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_library_is_small():
    assert LIBRARY_PATH.stat().st_size < 20e6


def find_python(minor):
    places = [str(p) for p in Path.home().glob(".pyenv/versions/*/bin")] + os.environ["PATH"].split(os.pathsep)
    for place in places:
        path = shutil.which(f"python3.{minor}", path=place)
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    pytest.skip(f"no python3.{minor} on this machine")


@pytest.mark.parametrize("minor", range(10, 14))
def test_every_python_can_load_the_library(minor):
    python = find_python(minor)
    environment = os.environ | {"PYTHONPATH": str(Path(varattn.__file__).parents[1])}
    has_torch = subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0
    # Without PyTorch for that Python, its C++ half alone: the library has no more to do with Python than that.
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    load = f"import ctypes; ctypes.CDLL({str(torch_library)!r}); ctypes.CDLL({str(LIBRARY_PATH)!r})"
    subprocess.run([python, "-c", SMOKE if has_torch else load], check=True, env=environment)


def test_sources_are_python_3_10():
    for source in Path(varattn.__file__).parent.glob("*.py"):
        ast.parse(source.read_text(), feature_version=(3, 10))


def run_python(script, **environment):
    environment = os.environ | {"PYTHONPATH": str(Path(varattn.__file__).parents[1])} | environment
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)


def test_loads_where_no_gpu_is_visible():
    result = run_python(SMOKE, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr


def test_missing_library_says_how_to_build_it(tmp_path):
    shutil.copytree(Path(varattn.__file__).parent, tmp_path / "varattn", ignore=shutil.ignore_patterns("*.so"))
    result = run_python(
        "import torch, varattn\n"
        "assert not varattn.is_supported()\n"
        "try: varattn.plan_size(1, 1, 1, 1, 64, dtype=torch.float32, device='cpu')\n"
        "except ImportError as error: assert 'make build' in str(error), error\n"
        "else: raise AssertionError\n"
        "try: import varattn.host\n"
        "except ImportError as error: assert 'was not built for Python' in str(error), error\n"
        "else: raise AssertionError\n",
        PYTHONPATH=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
