"""The demo's data, network and task: two questions about real handwritten digits."""
