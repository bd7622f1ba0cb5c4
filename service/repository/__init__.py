"""The model repository on disk: find, route, publish. Imports host."""
