"""What a node does: it hosts devices, which take part in rounds and in steps, and rank what they keep."""
