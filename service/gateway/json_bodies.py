"""Bodies in JSON (RFC 8259)."""

import json
from typing import Any

from service.errors import InvalidArgument


def parse_json(raw: bytes) -> Any:
    """Parses the body of a request.

    Args:
        raw: JSON in UTF-8, as RFC 8259 (8.1) demands.

    Raises:
        InvalidArgument: It is not, or has half of a surrogate pair, which no text can hold.
    """
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("body", f"no JSON ({error})", "an object") from error
    return value
