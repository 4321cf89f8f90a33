"""Draft workers: guess how sessions go on, ahead of the target, and never decide anything."""
