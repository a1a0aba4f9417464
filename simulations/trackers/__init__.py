"""Runs told to trackers: TensorBoard, MLflow, and what installed packages add."""
