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
from fl_peel.lazy_imports import imported_when_asked

cpu_dispatch.pin()  # before anything loads the libraries that read it

if TYPE_CHECKING:
    from fl_peel.attacks.base import Attack
    from fl_peel.attacks.contracts import AttackContract
    from fl_peel.blocks.onnx_export import to_onnx
    from fl_peel.callbacks import Callback
    from fl_peel.data.population import Population
    from fl_peel.errors import FlPeelError
    from fl_peel.events import Event
    from fl_peel.exchange.bounded_statistic import BoundedStatistic
    from fl_peel.exchange.contracts import StatisticContract
    from fl_peel.model.device import Delta, Device, Embedding
    from fl_peel.model.model import Model, load
    from fl_peel.privacy.contracts import MechanismContract
    from fl_peel.privacy.mechanisms import Mechanism
    from fl_peel.randomness import device_uniforms, rng_for
    from fl_peel.scenario.scenario import Scenario
    from fl_peel.training.update import GroupUpdate
    from fl_peel.weighting.block_statistics import BlockStatistics
    from fl_peel.weighting.contracts import SelectorContract

__version__ = "0.1.0"

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

__all__ = [
    "Attack",
    "AttackContract",
    "BlockStatistics",
    "BoundedDeviceContents",
    "BoundedStatistic",
    "BudgetContract",
    "BudgetProcess",
    "Callback",
    "Chart",
    "Delta",
    "Device",
    "DeviceContents",
    "DeviceContentsContract",
    "DeviceProfile",
    "Embedding",
    "Event",
    "FlPeelError",
    "Fleet",
    "FleetBudgets",
    "GroupUpdate",
    "Mechanism",
    "MechanismContract",
    "Memory",
    "Model",
    "NoisedServerContents",
    "OpenDeviceContents",
    "OpenServerContents",
    "Population",
    "PositiveFloat",
    "ProfileContract",
    "Progress",
    "Result",
    "Scenario",
    "Section",
    "SectionContract",
    "SelectorContract",
    "ServerContents",
    "ServerContentsContract",
    "ShareFloat",
    "StatisticContract",
    "TableView",
    "__version__",
    "device_uniforms",
    "fleet_from_mapping",
    "load",
    "load_fleet",
    "load_scenario",
    "mean_update",
    "rng_for",
    "run",
    "to_onnx",
]

_own = imported_when_asked(
    __name__,
    {
        "Attack": "fl_peel.attacks.base",
        "AttackContract": "fl_peel.attacks.contracts",
        "BlockStatistics": "fl_peel.weighting.block_statistics",
        "BoundedStatistic": "fl_peel.exchange.bounded_statistic",
        "Callback": "fl_peel.callbacks",
        "Delta": "fl_peel.model.device",
        "Device": "fl_peel.model.device",
        "Embedding": "fl_peel.model.device",
        "Event": "fl_peel.events",
        "FlPeelError": "fl_peel.errors",
        "GroupUpdate": "fl_peel.training.update",
        "Mechanism": "fl_peel.privacy.mechanisms",
        "MechanismContract": "fl_peel.privacy.contracts",
        "Model": "fl_peel.model.model",
        "Population": "fl_peel.data.population",
        "Scenario": "fl_peel.scenario.scenario",
        "SelectorContract": "fl_peel.weighting.contracts",
        "StatisticContract": "fl_peel.exchange.contracts",
        "device_uniforms": "fl_peel.randomness",
        "load": "fl_peel.model.model",
        "rng_for": "fl_peel.randomness",
        "to_onnx": "fl_peel.blocks.onnx_export",
    },
)


def __getattr__(name: str) -> Any:
    if name not in _OF_OTHER_PACKAGES:
        return _own(name)
    from fl_peel.errors import FieldError
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
        raise ImportError(str(error)) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
