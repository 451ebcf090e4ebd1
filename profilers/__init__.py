"""Costs: parameters, MACs and FLOPs from a trace, file sizes, ONNX Runtime latency. Prints nothing."""
