"""Tests of `recipe`, one file a module."""
