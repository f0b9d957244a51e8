"""Benchmarks: ratios, measured in turn in one process. Not tests."""
