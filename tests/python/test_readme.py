"""What the README shows works."""

import re
from pathlib import Path

import pytest
import torch

import varattn

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not varattn.is_supported("cpu"), reason="the varattn library is not built")
def test_examples():
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    scope = {}
    for example in examples:
        exec(example, scope)
    assert len(examples) == 2 and torch.equal(scope["again"], scope["out"])
    assert (scope["out"] - scope["want"]).abs().max() < 0.05
    assert (scope["lse"] - scope["want_lse"]).abs().max() < 1e-3


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
