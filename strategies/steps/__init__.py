"""How the server asks a step: in the clear, masked, noised, with contributors counted first, resumed."""
