"""Phones, callers and stand-in providers on this machine: for demo, tests and benchmark."""
