"""Phones, callers and stand-in providers on this machine: for the demo, the tests and the benchmark."""
