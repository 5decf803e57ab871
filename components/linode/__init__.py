"""Nodes on Linode."""
