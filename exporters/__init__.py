"""PyTorch to ONNX: export, weight packing and numeric verification. Writes only the files that the caller names."""
