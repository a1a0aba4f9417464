"""Runs side by side, device by device: several seeds of one scenario, and one run against others."""
