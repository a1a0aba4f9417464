"""What the tests of fleets share."""

from __future__ import annotations

import numpy as np
import pytest

from clients.fleet.fleet import Fleet, fleet_from_mapping
from fl_peel.errors import ProfileError

PHONES = {0.5: 10, 0.75: 4, 1: 40, 1.5: 7, 2: 18, 3: 13, 4: 96, 6: 78, 8: 57, 10: 1, 12: 9}
TABLE = 10_000_000


def ids(count: int) -> np.ndarray:
    """Device ids 0, 1, ..."""
    return np.arange(count, dtype=np.int64)


def fleet_of(**keys) -> Fleet:
    """Fleet of one profile, with a tenth of the table unless said otherwise."""
    return fleet_from_mapping({"profiles": [{"name": "phone", "memory": {"table_share": 0.1}, **keys}]})


def one_line(make, expected: str) -> None:
    """``make()`` raises a ProfileError of one line that holds ``expected``."""
    with pytest.raises(ProfileError) as caught:
        make()
    text = str(caught.value)
    assert expected in text
    assert "\n" not in text
    assert len(text) < 400
