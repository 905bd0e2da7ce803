"""Compiled loops of the competition for float32 units on the CPU."""
