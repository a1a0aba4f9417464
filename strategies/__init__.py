"""The server side: per-group rounds, block-wise aggregation, sampling of cohorts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_peel.lazy_imports import imported_when_asked

if TYPE_CHECKING:
    from strategies.groups.aggregation import mean_update
    from strategies.rounds.contents import ServerContents
    from strategies.rounds.contracts import ServerContentsContract
    from strategies.rounds.noised import NoisedServerContents
    from strategies.rounds.open import OpenServerContents
    from strategies.rounds.strategy import PeelStrategy
    from strategies.run.run_paths import RunPaths
    from strategies.server_app import serve

__all__ = [
    "NoisedServerContents",
    "OpenServerContents",
    "PeelStrategy",
    "RunPaths",
    "ServerContents",
    "ServerContentsContract",
    "mean_update",
    "serve",
]

__getattr__ = imported_when_asked(
    __name__,
    {
        "NoisedServerContents": "strategies.rounds.noised",
        "OpenServerContents": "strategies.rounds.open",
        "PeelStrategy": "strategies.rounds.strategy",
        "RunPaths": "strategies.run.run_paths",
        "ServerContents": "strategies.rounds.contents",
        "ServerContentsContract": "strategies.rounds.contracts",
        "mean_update": "strategies.groups.aggregation",
        "serve": "strategies.server_app",
    },
)
