"""Where settings come from: flags, the environment, defaults."""
