"""Which version of each model is live, and how another takes its place. Imports inference, conversion, repository."""
