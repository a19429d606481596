"""Tests of the solvers; `problems.py` lists what all of them are run on."""
