"""Who is who on one machine: JupyterHub's shared passwords, with an answer for every input."""

from __future__ import annotations

from typing import Any

from jupyterhub.authenticators.shared import SharedPasswordAuthenticator  # type: ignore[import-untyped]


class LabAuthenticator(SharedPasswordAuthenticator):  # type: ignore[misc]  # JupyterHub has no types
    """Any name with the learners' password; the operator's name with the operator's."""

    async def authenticate(self, handler: Any, data: dict[str, str]) -> Any:
        """The person, or None.

        Args:
            handler: the request's.
            data: the form's `username` and `password`.
        """
        username, password = data.get("username", ""), data.get("password", "")
        # hmac.compare_digest takes text only if it is ASCII, as our passwords are; a Korean keyboard types more.
        if not username or not password.isascii():
            return None
        return await super().authenticate(handler, {**data, "username": username, "password": password})
