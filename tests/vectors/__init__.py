"""Stored embeddings as files, and beside each what a reader must find in it: for readers in any language.

docs/artefact.md tells what is in them, :mod:`tests.vectors.make` writes them.
"""
