"""Labelers: each takes what units did on a probe set and returns rows of the one label table."""
