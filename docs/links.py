"""Pages link to the repository's files, which the site has no page of; there, their room's page stands for them."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`](../loss/README.md#heads)` as `](rooms/loss.md)`."""
    return re.sub(r"\]\(\.\./(loss|models|data|metrics|utils)/[^)]*\)", r"](rooms/\1.md)", markdown)
