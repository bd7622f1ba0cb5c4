"""The networks, their weights, and the conversion to ONNX. Imports nothing of the service."""
