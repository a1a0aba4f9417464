"""The keys of a scenario: typed, validated, unknown ones refused. Imports no torch, numba, scikit-learn or Flower."""

from fl_peel.scenario.measurement import Elasticity, Engine, Evaluation, Fairness
from fl_peel.scenario.method import Blocks, Collected, ControllerPart, Data, Pretraining, UserGroupsPart
from fl_peel.scenario.protection import Clipping, Poisoning, Privacy, ReleaseShares, SecureAggregation, Statistic
from fl_peel.scenario.refinement import Aggregation, Local, Refinement, Robust
from fl_peel.scenario.scenario import Scenario

__all__ = [
    "Aggregation",
    "Blocks",
    "Clipping",
    "Collected",
    "ControllerPart",
    "Data",
    "Elasticity",
    "Engine",
    "Evaluation",
    "Fairness",
    "Local",
    "Poisoning",
    "Pretraining",
    "Privacy",
    "Refinement",
    "ReleaseShares",
    "Robust",
    "Scenario",
    "SecureAggregation",
    "Statistic",
    "UserGroupsPart",
]
