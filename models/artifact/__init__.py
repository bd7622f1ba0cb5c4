"""What an artifact is and how it lies on disk. Imports architecture, inputs, outputs and errors of models."""
