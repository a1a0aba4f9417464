"""Worth of each part of the method."""
