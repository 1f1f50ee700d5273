"""What training costs, and what the kernels are worth: `python -m benchmarks` (__main__.py)."""
