"""The ground floor: errors, time and logs. Imports nothing of ours."""
