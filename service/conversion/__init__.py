"""Runs the children that convert and check, with a cache keyed by content. Imports repository and host."""
