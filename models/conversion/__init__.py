"""Converts weights to a checked ONNX graph in a confined child process. Imports artifact and below."""
