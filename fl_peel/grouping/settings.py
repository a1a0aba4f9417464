"""Names of kinds of item groups. Imports nothing: the scenario's keys are read with it."""

from __future__ import annotations

from typing import Literal

ItemGroupKind = Literal["contiguous", "popularity", "interest-popularity", "single"]
