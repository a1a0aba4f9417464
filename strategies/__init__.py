"""The server side: per-group rounds, block-wise aggregation, sampling of cohorts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_peel.packages import imported_when_asked

if TYPE_CHECKING:
    from strategies.groups.state import mean_update as mean_update
    from strategies.rounds.contents import OpenServerContents as OpenServerContents
    from strategies.rounds.contents import ServerContents as ServerContents
    from strategies.rounds.contracts import ServerContentsContract as ServerContentsContract
    from strategies.rounds.noised import NoisedServerContents as NoisedServerContents
    from strategies.rounds.strategy import PeelStrategy as PeelStrategy
    from strategies.run.run_paths import RunPaths as RunPaths
    from strategies.server_app import serve as serve

__getattr__ = imported_when_asked(__name__, __file__)
