"""Versions of models: which is live, and how another replaces it. Imports inference, conversion, repository."""
