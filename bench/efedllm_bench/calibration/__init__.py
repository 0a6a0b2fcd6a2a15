"""`efedllm model calibrate`: the tolerance of a float model, measured.

bench = benchmarks + attack suite + calibration. Calibration measures honest machines against cheats, so it needs the
executors that cheat, and these stay outside the production packages. Imports lead one way: fleet and cheats, then
calibration, then attacks.
"""
