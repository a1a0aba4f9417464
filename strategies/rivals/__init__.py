"""Other ways of fitting a budget, under one interface."""
