"""Runs loaded versions: batching, engines, answers. Imports images and host."""
