"""Reads files of weights into a network. Imports graph, artifact, the catalog and the zoo."""
