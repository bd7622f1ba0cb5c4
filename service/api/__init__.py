"""Requests -> answers, as FastAPI's routes. Imports versions and what is below them."""
