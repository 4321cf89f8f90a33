"""What travels between processes: keys, messages, limits, request rules. No I/O, no torch."""
