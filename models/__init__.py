"""What is served, and how it becomes ONNX. Knows nothing of the service."""
