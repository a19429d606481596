"""Poisoning, measured by retraining victims: `python -m benchmarks poisoning`."""
