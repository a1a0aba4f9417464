"""Flower's simulation engine: started in one place, stopped when it must."""
