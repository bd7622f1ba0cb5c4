"""Converts and checks versions in child processes, with a cache keyed by content. Imports repository and host."""
