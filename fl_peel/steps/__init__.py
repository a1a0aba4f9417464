"""Steps of stage 1: each is one question to devices whose answers add up, both halves of it in one file."""
