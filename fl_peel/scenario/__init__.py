"""The keys of a scenario: typed, validated, unknown ones refused. Imports no torch, numba, scikit-learn or Flower."""
