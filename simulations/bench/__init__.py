"""Devices per second, against stock Flower and pfl."""
