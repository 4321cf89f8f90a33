"""The target worker: one model that checks the guesses of many sessions and emits its own tokens."""
