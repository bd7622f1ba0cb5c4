"""The model repository on disk: finds, routes and publishes versions. Imports host."""
