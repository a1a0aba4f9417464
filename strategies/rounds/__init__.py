"""A round on the server: whom to ask, how sums meet, what becomes of them."""
