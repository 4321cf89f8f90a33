"""Everything on one machine: embedded server, workers and gateway, supervised; and the demo."""
