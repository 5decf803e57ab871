"""Measurements that `tools.bench` takes from elsewhere, one module each."""
