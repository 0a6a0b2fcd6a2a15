"""Benchmarks, the attack suite, and the calibration of float models.

What cheats lives here and not in a production package, and so does calibration, which measures cheats.
"""
