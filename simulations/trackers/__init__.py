"""Trackers of runs: TensorBoard, MLflow, and what installed packages add."""
