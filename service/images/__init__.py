"""Compressed bytes -> uint8 pixels, in processes of their own. Imports host, and inputs and pictures of models."""
