"""One renderer per format; each sees only a `RunReport`."""
