"""The server side: per-group rounds, block-wise aggregation, sampling of cohorts."""
