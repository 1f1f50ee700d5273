"""The measurements of benchmark.py. Each module has measure(args, device) -> dict."""
