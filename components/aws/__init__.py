"""Nodes and GPU jobs on AWS."""
