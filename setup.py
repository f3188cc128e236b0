"""Drives CMake, the one build system, for Python. What is not code is in pyproject.toml.

The wheel is tagged cp310-abi3: varattn/_C.abi3.so has no Python symbols and serves every Python from 3.10 and every
PyTorch from 2.10. The host planner, varattn/_host, is a pybind11 module for the Python that builds the wheel. It is
packed beside it where pybind11 and Python's headers are found; other Pythons do without (varattn/host.py says so).

Environment: VARATTN_CUDA=AUTO|ON|OFF, and CMAKE_ARGS for anything else.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def run(self) -> None:
        output = ROOT / "python" if self.inplace else Path(self.build_lib).resolve()
        build_dir = ROOT / "build" / "cmake" if self.inplace else Path(self.build_temp).resolve()
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build_dir}",
            "-GNinja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DVARATTN_PYTHON_OUTPUT_DIR={output / 'varattn'}",
            "-DVARATTN_PYTHON=ON",
            f"-DVARATTN_TESTS={'ON' if self.inplace else 'OFF'}",
        ]
        if "VARATTN_CUDA" in os.environ:
            configure.append(f"-DVARATTN_CUDA={os.environ['VARATTN_CUDA']}")
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir)], check=True)
        library = output / "varattn" / "_C.abi3.so"
        if not library.exists():
            raise RuntimeError(f"setup.py: {library} was not built: {sys.executable} needs PyTorch 2.10 or newer")


setup(
    ext_modules=[Extension("varattn._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
