"""Compressed bytes -> uint8 pixels, in processes of their own. Imports host, and models.inputs of models."""
