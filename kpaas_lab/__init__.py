"""K-PaaS Lab: learn, train, serve and sell AI from a browser notebook.

Example:
    >>> import kpaas_lab
    >>> kpaas_lab.__version__
    '0.1.0'
"""

from __future__ import annotations

__version__ = "0.1.0"
