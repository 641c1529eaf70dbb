"""Benchmarks: `make bench`, or `python -m bench [NAME ...]`.

Each one measures through the same doors that people use, against a real server with its real
database, and prints p50 and p99 beside the bar of the design. Nothing here is a test: machines
differ, so a number is shown, not asserted.
"""
