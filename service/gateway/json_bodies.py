"""Bodies in JSON (RFC 8259)."""

import json
from typing import Any

from service.errors import InvalidArgument


def parse_json(raw: bytes, most: int, hint: str = "") -> Any:
    """Parses the body of a request.

    Args:
        raw: JSON in UTF-8, as RFC 8259 (8.1) demands.
        most: Maximum number of its values, in all lists and objects together.
        hint: What else may be sent, if they are more.

    Raises:
        InvalidArgument: It is not, or has half of a surrogate pair, which no text can hold; or it
            has more values.
    """
    # What a value costs is many times what its bytes do, and all others wait meanwhile. So they
    # are counted by their commas, before anything is parsed.
    values = raw.count(b",") + 1
    if values > most:
        raise InvalidArgument("body", f"JSON of {values} values", f"at most {most}{hint}")
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("body", f"no JSON ({error})", "an object") from error
    return value
