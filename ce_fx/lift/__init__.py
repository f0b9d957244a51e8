"""Lift: a graph and its ATen reading become regions, each with one expression."""
