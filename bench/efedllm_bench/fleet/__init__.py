"""Honest machines of different kinds, which calibration measures and the attack suite must never accuse."""
