"""varattn: attention over ragged batches for LLM serving, planned ahead of time on the device.

Once a step, varattn.plan turns the lengths into work items, on the device. Once a layer, varattn.mha_varlen consumes
them in one launch. varattn.check reads what a plan has to say; varattn.reference is the operator in float64.
varattn.GraphRunner keeps both in CUDA graphs that serve every step up to a capacity.
"""

from importlib.metadata import PackageNotFoundError, version

from varattn import reference
from varattn.graph import Batch, GraphRunner
from varattn.ops import is_supported, mha_varlen, plan, plan_many, plan_size, workspace_size
from varattn.planner import Plan, PlanError, check

try:
    __version__ = version("varattn")
except PackageNotFoundError:  # used from the source tree
    __version__ = "0+source"

__all__ = [
    "Batch",
    "GraphRunner",
    "Plan",
    "PlanError",
    "check",
    "is_supported",
    "mha_varlen",
    "plan",
    "plan_many",
    "plan_size",
    "reference",
    "workspace_size",
]
