"""The PEEL method: NumPy and torch values in, values out. No Flower, no Ray.

Source: Zheng, Qu, Chen, Zheng, Shi, Yin, "Personalized Elastic Embedding Learning for On-Device
Recommendation", arXiv 2306.10532 (IEEE TKDE).

Here is all that a user imports by name: what runs a scenario, what reads the model that it leaves, what one's own
selector, mechanism, attack, budget process or device profile builds on, and the suites that test them. Names that lie
in another package of fl-peel are found through the entry points ``fl_peel.api`` of the installed package: the method
itself imports nothing of its users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fl_peel import cpu_dispatch
from fl_peel.packages import imported_when_asked

cpu_dispatch.pin()  # before anything loads the libraries that read it

if TYPE_CHECKING:
    from fl_peel.attacks.base import Attack as Attack
    from fl_peel.blocks.onnx_export import to_onnx as to_onnx
    from fl_peel.contracts import AttackContract as AttackContract
    from fl_peel.contracts import MechanismContract as MechanismContract
    from fl_peel.contracts import SelectorContract as SelectorContract
    from fl_peel.contracts import StageContract as StageContract
    from fl_peel.contracts import StatisticContract as StatisticContract
    from fl_peel.data.datasets import Population as Population
    from fl_peel.errors import FlPeelError as FlPeelError
    from fl_peel.events import Callback as Callback
    from fl_peel.events import Event as Event
    from fl_peel.exchange.release import BoundedStatistic as BoundedStatistic
    from fl_peel.figures import Figure as Figure
    from fl_peel.model.device import Delta as Delta
    from fl_peel.model.device import Device as Device
    from fl_peel.model.device import Embedding as Embedding
    from fl_peel.model.model import Model as Model
    from fl_peel.model.model import load as load
    from fl_peel.privacy.mechanisms import Mechanism as Mechanism
    from fl_peel.randomness import device_uniforms as device_uniforms
    from fl_peel.randomness import rng_for as rng_for
    from fl_peel.scenario.scenario import Scenario as Scenario
    from fl_peel.steps.base import NoisedPart as NoisedPart
    from fl_peel.steps.base import Stage as Stage
    from fl_peel.steps.base import SumField as SumField
    from fl_peel.training.update import GroupUpdate as GroupUpdate
    from fl_peel.weighting.block_statistics import BlockStatistics as BlockStatistics

__version__ = "0.2.0"

_OF_OTHER_PACKAGES = frozenset(
    (
        "BoundedDeviceContents",
        "BudgetContract",
        "BudgetProcess",
        "Chart",
        "DeviceContents",
        "DeviceContentsContract",
        "DeviceProfile",
        "Fleet",
        "FleetBudgets",
        "Memory",
        "NoisedServerContents",
        "OpenDeviceContents",
        "OpenServerContents",
        "PositiveFloat",
        "ProfileContract",
        "Progress",
        "Result",
        "Section",
        "SectionContract",
        "ServerContents",
        "ServerContentsContract",
        "ShareFloat",
        "TableView",
        "fleet_from_mapping",
        "load_fleet",
        "load_scenario",
        "mean_update",
        "run",
    )
)

_own = imported_when_asked(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted({*_own("__all__"), *_OF_OTHER_PACKAGES, "__version__"})
    if name not in _OF_OTHER_PACKAGES:
        return _own(name)
    from fl_peel.errors import FieldError
    from fl_peel.packages import check_one_root
    from fl_peel.plugins import Registry

    api: Registry[Any] = Registry("name", "fl_peel.api")
    if name not in api.added():
        raise ImportError(
            f"fl_peel.{name} is found through the installed package, and none is installed that has it; "
            "install fl-peel (pip install .), or import it from clients, strategies or simulations"
        )
    try:
        return api.get(name)
    except FieldError as error:
        check_one_root()  # says so where a folder of that name hides the package
        raise ImportError(str(error)) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
