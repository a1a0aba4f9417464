"""A scenario run many times: comparisons, ablations, audits, resumed where they stopped."""
