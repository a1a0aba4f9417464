"""Block weights: what is known of blocks, the learned controller, the fixed orders it must beat."""
