"""Reads the licence of a package's fonts from its `copyright` file.

Most such files are machine-readable (DEP-5): paragraphs of fields, among them one for each set of
files. Of others, and of licences with names of their own, the text is searched for the words of
well-known licences. What is not found to be free is not used: a wrong guess would be passed on
with every model.
"""

import re
from collections.abc import Iterator


class Unclear(Exception):
    """The licence is not known to allow derived works; the message says what was found."""


# Names of free licences and their words, both in names (`OFL-1.1`) and in texts. All of them allow
# changed copies to be passed on, some under conditions.
_KNOWN = tuple(
    (name, re.compile(words, re.IGNORECASE))
    for name, words in (
        ("OFL", r"\bofl\b|\bsil[- ]|open font licen[cs]e"),
        ("Apache", r"\bapache\b"),
        ("UFL", r"ubuntu font licen[cs]e|\bufl\b"),
        ("GUST", r"\bgust\b"),
        ("LPPL", r"\blppl\b|latex project public"),
        ("Bitstream Vera", r"\bbitstream\b|\bvera\b"),
        ("IPA", r"\bipa\b|\bipafont\b"),
        ("Arphic", r"\barphic\b"),
        ("Baekmuk", r"\bbaekmuk\b|\bhwan design\b"),
        ("Wadalab", r"\bwadalab\b"),
        ("M+", r"\bm\+|\bmplus\b|\bm-?plus\b"),
        ("LGPL", r"\blgpl|(lesser|library) general public"),
        ("AGPL", r"\bagpl|affero general public"),
        ("GPL with font exception",
         r"\b(gpl|gnu general public)[^\n]*exception"
         r"|embed[^.]{0,80}does not[^.]{0,80}general\s+public"),
        ("GPL", r"\bgpl|gnu\s+general\s+public"),
        ("CC0", r"\bcc0|cc zero"),
        ("CC BY-SA", r"\bcc[- ]by[- ]sa\b|attribution[- ]share ?alike"),
        ("CC BY", r"\bcc[- ]by\b|creative commons attribution"),
        ("MIT", r"\bmit\b|\bexpat\b|\bx11\b|permission is hereby granted, free of charge"),
        ("BSD", r"\bbsd\b|redistribution and use in source and binary forms"),
        ("Zlib", r"\bzlib\b"),
        ("ISC", r"\bisc\b"),
        ("Artistic", r"\bartistic\b"),
        ("MPL", r"\bmpl\b|mozilla public"),
        ("WTFPL", r"\bwtfpl\b|do what the f"),
        ("public domain", r"\bpublic[- ]domain\b"),
        ("ParaType", r"\bparatype\b"),
        ("permissive",
         r"unlimited permission is granted to use, copy,? and distribute|free to use and alter"
         r"|freely\s+use,\s+modify|\bunlicense\b|gnu-(all|simple)-permissive"
         r"|create new fonts, based on your fonts, without asking"),
    )
)  # fmt: skip
# Words in the name of a licence that forbids derived works or their distribution.
_FORBIDDEN = re.compile(
    r"\bnc\b|non-?commercial|\bnd\b|no-?deriv|proprietary|non-?free|shareware", re.IGNORECASE
)
_FIELD = re.compile(r"^([A-Za-z][A-Za-z-]*):[ \t]*(.*)$")
# Likewise in a text, which may also speak of uses `both commercial and non-commercial`.
_FORBIDDING = re.compile(
    r"(?<!commercial and )(?<!commercially and )(?<!commercial or )non-?commercial"
    r"|not be modified|no derivative",
    re.IGNORECASE,
)
_PACKAGING = re.compile(r"debian packag|packaging (is|are|was|files)", re.IGNORECASE)
# Files that hold no outlines: their licence says nothing of the fonts.
_OTHER_FILES = re.compile(
    r"debian/|.*\.(xml|conf|txt|md|html|css|js|py|pe|sh|pl|rb|tex|sty|fd|map|enc|pdf|png|svg|m4)\Z"
    r"|.*(Makefile|README|FONTLOG|metainfo|appdata|fontconfig|doc/|docs/|scripts/|tools/).*"
)


def licence_of(text: str) -> str:
    """The licences of a package by its `copyright` file: `OFL`, or `GPL and MIT`.

    Args:
        text: The file, in the format of DEP-5 or any other.

    Returns:
        The names of all licences that hold for the package's fonts. Of a choice, the first that
        is known.

    Raises:
        Unclear: One is unknown or forbids derived works, or there is none.
    """
    paragraphs = list(_paragraphs(text))
    if "format" not in paragraphs[0]:
        return " and ".join(_of_text(text))
    texts = {
        name.casefold(): rest
        for each in paragraphs
        if "files" not in each
        for name, rest in [_split(each.get("license", ""))]
    }
    found: list[str] = []
    for each in paragraphs:
        files = each.get("files", "").split()
        if not files or all(_OTHER_FILES.match(name) for name in files):
            continue
        name, rest = _split(each.get("license", ""))
        found += _of_choice(name, rest or texts.get(name.casefold(), ""), texts)
    if not found:
        raise Unclear("no licence of any font file")
    return " and ".join(dict.fromkeys(found))


def _of_choice(name: str, text: str, texts: dict[str, str]) -> list[str]:
    """The licences of a name such as `OFL-1.1 or GPL-2+ with font exception`.

    Raises:
        Unclear: No part of the choice is known.
    """
    for choice in re.split(r"\s+or\s+|\|", name):
        parts = re.split(r"\s+and\s+|\s*,\s*", choice.strip(" ,"))
        try:
            return [_of_name(part, texts.get(part.casefold(), text)) for part in parts]
        except Unclear:
            continue
    raise Unclear(name or "a file without a licence")


def _of_name(name: str, text: str) -> str:
    """The licence of that name, or else of that text."""
    if _FORBIDDEN.search(name):
        raise Unclear(name)
    for known, words in _KNOWN:
        if words.search(name):
            exception = known == "GPL" and re.search(r"\bexception\b", text)
            return "GPL with font exception" if exception else known
    if not text:
        raise Unclear(name or "a file without a licence")
    return _of_text(text, name)[0]


def _of_text(text: str, name: str = "no well-known licence") -> list[str]:
    """The well-known licences that a text names, in the order of the table.

    Raises:
        Unclear: It names none, or forbids commerce or changes.
    """
    # Debian's own files may have another licence than the fonts.
    parts = [part for part in re.split(r"\n\s*\n", text) if not _PACKAGING.search(part)]
    text = "\n\n".join(parts)
    found = [known for known, words in _KNOWN if words.search(text)]
    if found and found[0] == "OFL":  # its text speaks of other licences only to exclude them
        return ["OFL"]
    if not found or _FORBIDDING.search(text):
        raise Unclear(name)
    return [each for each in found if each != "GPL" or "GPL with font exception" not in found]


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yields the paragraphs of a DEP-5 file: fields by their lower-case names."""
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        fields: dict[str, str] = {}
        last = ""
        for line in paragraph.split("\n"):
            if line[:1] in (" ", "\t"):
                if last:
                    fields[last] += "\n" + line.strip()
            elif field := _FIELD.match(line):
                last = field[1].lower()
                fields[last] = field[2]
            else:
                last = ""  # prose: not of this format
        yield fields


def _split(licence: str) -> tuple[str, str]:
    """The first line of a field and the others."""
    name, _, rest = licence.partition("\n")
    return name.strip(), rest.strip()
