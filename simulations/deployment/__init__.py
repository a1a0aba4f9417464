"""Runs on Flower's deployment engine: a SuperLink, and SuperNodes that hold what is theirs."""
