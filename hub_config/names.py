"""Which names a learner can have: they become paths, addresses and listings' publishers."""

from __future__ import annotations

import re

# A path's part, an address's part and a user inside a sandbox, so neither hidden, nor one of the system's.
USERNAME = r"(?!(?:root|nobody)\Z)[a-z0-9][a-z0-9_.-]{0,31}\Z"


def is_name(name: str) -> bool:
    r"""Whether a learner can be called so (after JupyterHub has put it in lower case).

    Example:
        >>> is_name("ann.lee-2"), is_name("../bob"), is_name("ann\n"), is_name("root")
        (True, False, False, False)
    """
    return re.match(USERNAME, name) is not None
