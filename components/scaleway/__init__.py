"""Scaleway: a typed client of its HTTP API and the Pulumi resources built on it."""
