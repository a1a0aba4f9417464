"""Bootstrap replicates of a rival's figures on the test, under the weights that PEEL's have."""

from __future__ import annotations

import numpy as np

from fl_peel.ranking.bootstrap import REPLICATES, Replicates
from strategies.rivals.base import TOP_N
from strategies.rivals.quality import DeviceQuality

Plain = dict[str, list[float | None]]


def replicates(quality: DeviceQuality) -> Plain:
    """Mean recall and NDCG of the devices that count, as :func:`in_json` has them."""
    return in_json(quality.drawn(REPLICATES))


def in_json(sums: Replicates, place: int = 0) -> Plain:
    """Means (B,) of one figure by metric; None in a replicate that drew no device."""
    return {
        f"{metric}@{TOP_N}": [None if np.isnan(mean) else mean for mean in means[place].tolist()]
        for metric, means in zip(("recall", "ndcg"), sums.means(), strict=True)
    }
