"""Attacks on what devices send, under every privacy mechanism."""
