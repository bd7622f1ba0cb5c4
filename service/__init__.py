"""The serving process: HTTP, batching, ONNX Runtime, metrics. Imports neither torch nor tensorflow."""
