"""The way through Redis: jobs, logs, inboxes, heartbeats. Knows nothing of models."""
