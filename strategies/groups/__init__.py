"""State that the server keeps for every user group, and how updates change it."""
