"""Artifacts and their files on disk. Imports architecture, inputs, outputs and errors of models."""
