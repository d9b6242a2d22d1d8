"""Everything that JupyterHub is told."""
