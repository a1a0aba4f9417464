"""What devices and server exchange in a round, as types that both halves share."""
