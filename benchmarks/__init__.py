"""What training costs, and what the kernels are worth: `python -m benchmarks` (__main__.py)."""
import advprune.start  # noqa: F401  first, because others may not be installed
