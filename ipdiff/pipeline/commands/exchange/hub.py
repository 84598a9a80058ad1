"""`ipdiff export --push`: a folder to a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ipdiff.errors import UserError, brief


class Hub:
    """A repository on the Hub that may be written to, as far as can be said before anything is sent."""

    def __init__(self, name: str) -> None:
        """Look at the name, the library and the token; nothing is sent.

        Args:
            name: ORG/NAME. $HF_ENDPOINT names another server than huggingface.co, $HF_TOKEN a token.

        Raises:
            UserError: it is no such name, huggingface_hub is not installed, or there is no token.
        """
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) is None:
            raise UserError(f"--push is '{brief(name, 60)}'; use ORG/NAME, the repository's owner and name")
        try:
            import huggingface_hub
        except ImportError:
            raise UserError("--push needs huggingface_hub; pip install huggingface_hub") from None
        self.name, self.token = name, huggingface_hub.get_token()
        if self.token is None:
            raise UserError("--push needs a token of the Hub that may write: set HF_TOKEN, or run `hf auth login`")
        self._api: Any = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=self.token)

    def push(self, folder: Path) -> str:
        """Send a folder's files as one commit; a repository that is not there is made, private.

        Returns:
            The commit's address.

        Raises:
            UserError: the Hub refuses, or cannot be reached. Nothing of the folder is changed.
        """
        try:
            self._api.create_repo(self.name, private=True, exist_ok=True)
            done = self._api.upload_folder(
                repo_id=self.name, folder_path=folder, commit_message="Exported by ipdiff", allow_patterns=None
            )
        except Exception as error:  # the library and those below it raise many kinds
            raise UserError(
                f"{self.name}: not pushed: {brief(error, 160)}; {folder} is written and can be pushed by "
                f"`hf upload {self.name} {folder}`"
            ) from None
        return str(done.commit_url)
