"""A network -> an ONNX graph that is compared with it, and how one is opened. Imports artifact and below."""
