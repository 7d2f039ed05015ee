"""No password of a server reaches what pytest prints, whoever put its URL there."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

__all__ = ["masked_text", "masked_url"]


def masked_url(url: str) -> str:
    """Returns the URL with every password in it replaced."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if ":" in user:
        user = f"{user.partition(':')[0]}:***"
    query = re.sub(r"(?i)(^|&)((?:ssl)?password)=[^&]*", r"\1\2=***", parts.query)
    return f"{parts.scheme}://{user}{at}{host}{parts.path}" + (f"?{query}" if query else "")


def masked_text(text: str, url: str) -> str:
    """Returns the text without the URL's password, where it stands as a password."""
    parts = urlsplit(url)
    found = [re.search(r"(?i)(?:^|&)password=([^&]*)", parts.query), re.match(r"[^:]*:(.+)@", parts.netloc)]
    for written in {match.group(1) for match in found if match}:
        for password in {written, unquote(written)}:
            secret = re.escape(password)
            text = re.sub(rf"(:){secret}(@)", r"\1***\2", text)
            text = re.sub(rf"(password\W{{1,6}}){secret}\b", r"\1***", text, flags=re.IGNORECASE)
    return text
