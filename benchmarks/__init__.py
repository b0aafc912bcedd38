"""Measures this package beside its peers. See README.md; `python -m benchmarks --help`."""
