"""Notebook kernels that start at once: forked, in the learner's own sandbox, from a process with torch imported."""
