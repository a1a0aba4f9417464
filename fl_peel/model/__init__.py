"""A saved model: what a run leaves that serves devices which were not there, and all that they do with it."""
