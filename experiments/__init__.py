"""The papers' experiments: `python -m experiments`; not installed with the library."""
import advprune.start  # noqa: F401  first, because others may not be installed
