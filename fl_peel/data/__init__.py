"""Interactions: read from files of many formats, downloaded, split, laid on the simulated devices' disks."""
