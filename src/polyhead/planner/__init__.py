"""Which attention, for a model, a context and a device, and why: arithmetic on specs, and evidence that is quoted.

Nothing here imports torch.
"""

from polyhead.planner.evidence import EVIDENCE, Evidence
from polyhead.planner.plan import Plan, Stack, plan
from polyhead.planner.ranking import Preferences

__all__ = ["EVIDENCE", "Evidence", "Plan", "Preferences", "Stack", "plan"]
