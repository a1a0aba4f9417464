"""Steps whose contributors are counted before a sum is opened: none is opened to which too few contribute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fl_peel.steps.base import Arrays, Bools, ChannelWrapper, PartSums, Step, answer_to
from fl_peel.steps.contributors import ContributorsStep, opened_rows


@dataclass
class CountedSteps(ChannelWrapper):
    """A :class:`fl_peel.steps.base.StepChannel` that counts contributors first. min_owners: devices that a sum needs to
    be opened.
    """

    min_owners: int

    def ask(self, step: Step, sent: Arrays, opened: Bools | None = None) -> Iterator[PartSums]:
        """See :class:`fl_peel.steps.base.StepChannel`; a step of which nothing may be opened is not asked."""
        if not self.terms.counts_contributors:
            yield from self.channel.ask(step, sent)
        elif step.counts_alone:
            for part, sums in self.channel.ask(step, sent):
                counts = sums[step.counts_alone]
                yield part, sums | {step.counts_alone: np.where(opened_rows(counts, self.min_owners), counts, 0)}
        elif not step.num_rows(self.terms):
            yield from self.channel.ask(step, sent)
        else:
            counting = ContributorsStep(step)
            counted = answer_to(self.channel, counting, counting.cut(sent, (0, 1), self.terms))
            opened = opened_rows(counted["contributors"], self.min_owners)
            if opened.any():
                yield from self.channel.ask(step, sent, opened)
                return
            for part in step.parts(self.terms, step.part_bytes):
                yield part, {one.name: np.zeros(one.shape, np.int64) for one in step.fields(self.terms, part)}
