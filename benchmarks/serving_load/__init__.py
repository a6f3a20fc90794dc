"""What `benchmarks/serving.py` and `benchmarks/soak.py` are made of: a model, servers, a trace, and clients."""
