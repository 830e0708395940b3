"""Benchmarks: one module a claim, figures as JSON. ``python -m benchmarks --help`` lists them."""
