"""The rivals of `benchmarks/rivals.py`: how each is installed, given a model, and run."""
