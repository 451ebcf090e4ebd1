"""Sections of README.md, each from one recorded document."""
