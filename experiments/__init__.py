"""The papers' experiments: `python -m experiments`; not installed with the library."""
