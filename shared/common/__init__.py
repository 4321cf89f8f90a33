"""The ground floor: errors, time, logs and exit statuses. Imports nothing of ours."""
