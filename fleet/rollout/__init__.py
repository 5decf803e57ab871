"""Brings what a node serves up to date over SSH, in place: `python -m fleet.rollout`, a spec on stdin.

Preflight → backup → upload → validate → pull → prefetch, all while the old release serves; then, when it is
this node's turn, switch → gate → commit. Whatever fails, the release before it is put back and gated. Every
step may be run again, and the node keeps a journal and a watchdog of its own: an operator that is killed or
cut off leaves it with one of the two releases, and the next run resumes or undoes what was under way.
"""
