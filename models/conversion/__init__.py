"""Weights -> a checked ONNX graph, in a confined child process. Imports its readers and graph, artifact, and below."""
