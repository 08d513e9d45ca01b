"""Models as ONNX files. Needs the extra ``onnx``."""
