"""A node that has its own interactions: a file that the node alone reads, of one device or several.

``--node-config 'partition-id=0 num-partitions=3 data="mine.csv" first-device=0'``. Users of the file are devices, in
the order of their ids. The first of them has the number ``first-device`` among all devices of the federation, from
which follows whatever is drawn for it. What they keep lies in ``run-dir``, by default beside the file, in a folder of
the run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context

from fl_peel.device_storage import keep_catalogue, own_splits
from fl_peel.errors import EngineError
from fl_peel.file_kind import file_kind
from fl_peel.scenario.scenario import Scenario

KEY, FIRST, FOLDER = "data", "first-device", "run-dir"


@dataclass(frozen=True)
class OwnData:
    """The data of a node that has its own. first: number of the first device; folder: folder of this run, where devices
    keep their state.
    """

    path: Path
    first: int
    folder: Path

    @staticmethod
    def from_context(context: Context, partition: int) -> OwnData | None:
        """Read what the node was started with; return None where no file was named. By default the device of a node
        that has one device is numbered as the node is.

        Raises:
            EngineError: there is no such file, or the number is none.
        """
        config = context.node_config
        if KEY not in config:
            return None
        path = Path(os.path.abspath(os.path.expanduser(str(config[KEY]))))
        if file_kind(path) != "file":
            raise EngineError(f"node config: {KEY}: {path}: no such file; start the node with the path of one")
        first = config.get(FIRST, partition)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise EngineError(f"node config: {FIRST}: {first!r} is not a device number; give 0, 1, 2, ...")
        place = os.path.abspath(os.path.expanduser(str(config.get(FOLDER, f"{path}.fl-peel"))))
        return OwnData(path, first, Path(place) / f"run-{context.run_id}")

    def hosted(self, scenario: Scenario, catalogue: str) -> int:
        """Prepare a run with these items; how many devices there are.

        Raises:
            DataError: as for :func:`fl_peel.device_storage.own_splits`.
        """
        keep_catalogue(catalogue, self.folder)
        return own_splits(scenario, self.path, self.first, self.folder).num_users


__all__ = ["OwnData"]
