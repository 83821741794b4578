"""ONNX models, read and edited with onnx-ir and run with onnxruntime."""
