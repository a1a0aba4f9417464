"""Differential privacy of devices: mechanisms, accounting, and what the server makes of noised sums.

Plain arrays in, plain arrays out. :mod:`fl_peel.privacy.mechanisms` says how noise is drawn and what it costs,
:mod:`fl_peel.exchange.release` what a device contributes and its bounds, :mod:`fl_peel.privacy.mechanisms` what a
run spends, :mod:`fl_peel.privacy.shrinkage` what the server makes of it. See docs/privacy.md.
"""
