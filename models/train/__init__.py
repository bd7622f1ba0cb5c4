"""Fits, evaluates and publishes a network. Imports conversion.readers, artifact and what is below them."""
