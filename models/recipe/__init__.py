"""How the bundled model pair was made, one module a subject."""
