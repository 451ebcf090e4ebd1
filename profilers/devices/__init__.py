"""Predicted latency on named phones, boards and servers: a model fitted to a public table, with its error."""
