"""Running ONNX files elsewhere: one interface, a command in, one JSON line out (specification, mobile.md section 5)."""
