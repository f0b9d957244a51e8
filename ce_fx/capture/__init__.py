"""Capture: a module becomes an FX graph; any FX graph gets its ATen reading."""
