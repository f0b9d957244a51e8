"""Knowing time: the calibration of a device, the measured choice between candidates, and what is kept on disk."""
