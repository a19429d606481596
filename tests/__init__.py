"""Tests: truth is retraining, closed forms and brute force."""
