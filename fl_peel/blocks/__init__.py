"""Embedding blocks: layout, precision, ranking under a budget, the stored artefact, rivals' encodings."""
