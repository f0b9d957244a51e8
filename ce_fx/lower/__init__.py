"""Lowering: a plan becomes torch ops, one well-shaped op a step."""
