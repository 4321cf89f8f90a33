"""The target worker: checks the guesses of many sessions, and emits only its own tokens."""
