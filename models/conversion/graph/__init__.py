"""Exports a network to an ONNX graph and compares the two. Imports artifact and below."""
