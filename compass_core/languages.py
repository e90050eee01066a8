"""Language codes: many ways in, one way inside (ISO 639-3 + script, ``swh_Latn``).

Folders, manifests, cache keys and the registry use the canonical code alone, so it is also the only
thing that may become part of a path. Scripts come from CLDR's likely subtags; macrolanguages go to
the member that data sets mean by them, and those without such a member are refused.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from functools import lru_cache
from typing import Final, Literal

from compass_core.errors import LanguageError

MAX_INPUT: Final = 60
"""Characters of the longest language name or tag that is looked at."""

MAX_SHOWN: Final = 40
"""Characters of a refused input that are shown back."""

_MEMBER_OF: Final = {
    "aka": "twi", "ara": "arb", "aym": "ayr", "aze": "azj", "bik": "bcl", "doi": "dgo",
    "est": "ekk", "fas": "pes", "ful": "fuv", "grn": "gug", "hmn": "mww", "iku": "ike",
    "kok": "knn", "kom": "kpv", "kon": "kng", "kur": "kmr", "lah": "pnb", "lav": "lvs",
    "mlg": "plt", "mon": "khk", "msa": "zsm", "nep": "npi", "nor": "nob", "ori": "ory",
    "orm": "gaz", "pus": "pbt", "sqi": "als", "srd": "src", "swa": "swh", "tgl": "fil",
    "uzb": "uzn", "yid": "ydd", "zho": "cmn",
}  # fmt: skip
"""Macrolanguage → the member that corpora mean by it (Filipino stands for Tagalog, as in CLDR)."""

_GROUPS: Final = {
    "bal": "bcc, bgn or bgp", "bih": "bho, mag or mai", "bua": "bxr, bxm or bxu",
    "chm": "mhr or mrj", "cre": "cwd, csw or crk", "del": "umu or unm", "den": "scs or xsl",
    "din": "dik, dip or diw", "gon": "gno, esg or wsg", "hai": "hax or hdn",
    "hbs": "srp, hrv, bos or cnr", "ipk": "esi or esk", "jrb": "ajt, aju or yhd",
    "kln": "niq, oki or tuy", "kpe": "gkp or xpe", "luy": "lwg, lrm or nle",
    "man": "mnk, mku or emk", "mwr": "dhd, rwr or swv", "oji": "ciw, ojb or ojs",
    "que": "quy, quz or qub", "raj": "bgq, gju or mup", "rom": "rmy, rmn or rmc",
    "syr": "aii or cld", "tmh": "thv, taq or ttq", "zap": "zai, zaw or zpq",
    "zha": "zyb or zgn", "zza": "diq or kiu",
}  # fmt: skip
"""Codes of several languages without a usual member → what to choose from."""

_BIBLIOGRAPHIC: Final = {
    "alb": "sqi", "arm": "hye", "baq": "eus", "bur": "mya", "chi": "zho", "cze": "ces",
    "dut": "nld", "fre": "fra", "geo": "kat", "ger": "deu", "gre": "ell", "ice": "isl",
    "mac": "mkd", "mao": "mri", "may": "msa", "per": "fas", "rum": "ron", "slo": "slk",
    "tib": "bod", "wel": "cym",
}  # fmt: skip
_RETIRED: Final = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv", "mo": "ro", "bh": "bih"}
_SPECIAL: Final = frozenset({"und", "mul", "mis", "zxx", "root"})
_NO_SCRIPT: Final = frozenset({"Zinh", "Zmth", "Zsye", "Zsym", "Zxxx", "Zyyy", "Zzzz", "Qaag"})
_SCRIPT_FORM: Final = {"Kore": "Hang", "Hani": "Hans", "Hrkt": "Jpan", "Aran": "Arab"}
"""Scripts of one writing tradition get one form, the one FLORES uses."""

_SCRIPT_OF: Final = {"twi": "Latn", "lus": "Latn", "mww": "Latn"}
"""Usual scripts that CLDR's likely subtags lack or that corpora write otherwise."""

_NAMED_SCRIPTS: Final = ("Latn", "Cyrl", "Arab", "Hans", "Hant", "Deva", "Hebr", "Tfng", "Mong")
"""Scripts that people add to a language's name in brackets."""

_RIGHT_TO_LEFT: Final = frozenset({"Arab", "Hebr", "Thaa", "Syrc", "Nkoo", "Adlm", "Rohg", "Samr"})

_FORMS: Final = "Use a tag (sw, zh-Hant), a code (swh_Latn) or a name (Swahili)"
_TAG: Final = re.compile(
    r"(?P<language>[a-z]{2,3})(?:-(?P<extension>[a-z]{3}))?(?:-(?P<script>[a-z]{4}))?"
    r"(?:-(?P<region>[a-z]{2}|[0-9]{3}))?(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*"
)
_PRIVATE_USE: Final = re.compile(r"q[a-t][a-z]")
_ASCII_BRACKETS: Final = {ord("（"): " (", ord("）"): ")"}
_NAME_PUNCTUATION: Final = frozenset(" -'’‘ʼʻ().,·")


@lru_cache(maxsize=4096)
def canonical_language(text: str) -> str:
    """Return the canonical code of a language given as a tag, a code or a name.

    Args:
        text: BCP-47 (``zh-Hant``, ``pt-BR``), ISO 639-1/2/3 (``sw``, ``ger``, ``swh``), a canonical
            code (``swh_Latn``), or an English or native name (``Swahili``, ``Kiswahili``). Case
            does not matter; a region only helps to find the script.

    Raises:
        LanguageError: unknown, a group of several languages, or not a language tag at all (E43).

    Examples:
        >>> [canonical_language(text) for text in ("sw", "zh-Hant", "Serbian", "sr-Latn", "pt-BR")]
        ['swh_Latn', 'cmn_Hant', 'srp_Cyrl', 'srp_Latn', 'por_Latn']
    """
    if isinstance(text, str):
        text = text.translate(_ASCII_BRACKETS).rstrip(" ") if "（" in text else text
    if not isinstance(text, str) or not _is_harmless(text):
        raise _refusal(text, "is not a language tag, code or name")
    match = _TAG.fullmatch(text.replace("_", "-").lower())
    if match is not None:
        found = _from_tag(text, match)
        if found is not None:
            return found
    return _from_name(text)


def script(code: str) -> str:
    """Return the ISO 15924 script of `code`.

    Examples:
        >>> script("sw")
        'Latn'
    """
    return canonical_language(code)[4:]


def direction(code: str) -> Literal["ltr", "rtl"]:
    """Return the writing direction of `code`."""
    return "rtl" if script(code) in _RIGHT_TO_LEFT else "ltr"


@lru_cache(maxsize=1024)
def alpha2(code: str) -> str:
    """Return the ISO 639-1 code of `code`, or its ISO 639-3 code where there is none.

    Examples:
        >>> alpha2("swh_Latn"), alpha2("cmn_Hans"), alpha2("fil_Latn")
        ('sw', 'zh', 'fil')
    """
    iso3 = canonical_language(code)[:3]
    return _alpha3_to_2().get(_groups_by_member().get(iso3, iso3), iso3)


@lru_cache(maxsize=1024)
def language_name(code: str) -> str:
    """Return the English name of `code`, with the script where it is not the usual one.

    Examples:
        >>> language_name("swh_Latn"), language_name("cmn_Hant"), language_name("srp_Latn")
        ('Swahili', 'Chinese (Traditional)', 'Serbian (Latin)')
    """
    return _display(code, "en")


@lru_cache(maxsize=1024)
def native_name(code: str) -> str:
    """Return what speakers call `code`; its English name where that is unknown.

    Examples:
        >>> native_name("swh_Latn")
        'Kiswahili'
    """
    canonical = canonical_language(code)
    name = _display(canonical, f"{alpha2(canonical)}-{canonical[4:]}")
    return language_name(canonical) if name.startswith("Unknown language") else name


# --------------------------------------------------------------------------- parsing
def _is_harmless(text: str) -> bool:
    """Tell whether `text` could be a tag or a name: short, composed, letters and few marks."""
    if not text or len(text) > MAX_INPUT or text != text.strip():
        return False
    if unicodedata.normalize("NFKC", text) != unicodedata.normalize("NFC", text):
        return False
    return all(
        char in _NAME_PUNCTUATION
        or char == "_"
        or (char.isascii() and char.isdigit())
        or unicodedata.category(char)[0] in "LM"
        or unicodedata.category(char) == "Cf"
        for char in text
    ) and any(char.isalpha() for char in text)


def _from_tag(text: str, match: re.Match[str]) -> str | None:
    """Return the canonical code of a well-formed tag; None when its language does not exist."""
    given = match["extension"] or match["language"]
    iso3 = _iso3(given)
    if iso3 is None:
        return None
    if given in _SPECIAL or _PRIVATE_USE.fullmatch(given):
        raise _refusal(text, "does not name a language")
    if iso3 in _GROUPS:
        raise _refusal(text, f"stands for several languages; choose {_GROUPS[iso3]}")
    member = _MEMBER_OF.get(iso3, iso3)
    script_code = match["script"].title() if match["script"] else _likely(member, match["region"])
    if script_code is None:
        raise _refusal(text, f"has no usual script; write it out, for example {member}_Latn")
    if script_code not in _scripts():
        raise _refusal(text, f"names a script that does not exist ({script_code})")
    return f"{member}_{_SCRIPT_FORM.get(script_code, script_code)}"


def _from_name(text: str) -> str:
    import langcodes

    found = _from_name_with_script(text)
    if found is not None:
        return found
    try:
        tag = str(langcodes.find(text))
    except LookupError:
        raise _refusal(text, "is not a known language") from None
    match = _TAG.fullmatch(tag.lower())
    found = _from_tag(text, match) if match is not None else None
    if found is None:
        raise _refusal(text, "is not a known language")
    return found


def _from_name_with_script(text: str) -> str | None:
    """Resolve ``Serbian (Latin)``: what `language_name` and `native_name` say."""
    base, bracket, _ = text.partition("(")
    if not bracket or not base.strip():
        return None
    try:
        iso3 = canonical_language(base.strip())[:3]
    except LanguageError:
        return None
    wanted = text.casefold()
    for script_code in _NAMED_SCRIPTS:
        code = f"{iso3}_{script_code}"
        if wanted in (language_name(code).casefold(), native_name(code).casefold()):
            return code
    return None


def _iso3(language: str) -> str | None:
    """Return the ISO 639-3 code of a two- or three-letter code; None when there is no such code."""
    language = _RETIRED.get(language, language)
    language = _BIBLIOGRAPHIC.get(language, language)
    if len(language) == 2:
        return _alpha2_to_3().get(language)
    if language in _MEMBER_OF or language in _GROUPS or language in _alpha3_to_2():
        return language
    return language if _exists(language) else None


@lru_cache(maxsize=2048)
def _exists(language: str) -> bool:
    from langcodes.data_dicts import VALIDITY

    return bool(VALIDITY.match(language))


@lru_cache(maxsize=2048)
def _likely(iso3: str, region: str | None) -> str | None:
    """Return CLDR's likely script of a language (in a region)."""
    from langcodes.data_dicts import LIKELY_SUBTAGS

    group = _groups_by_member().get(iso3, iso3)
    names = [iso3, _alpha3_to_2().get(group, group), _alpha3_to_2().get(iso3, iso3)]
    keys = [f"{name}-{region.upper()}" for name in names] if region else []
    if not region and iso3 in _SCRIPT_OF:
        return _SCRIPT_OF[iso3]
    for key in keys + names:
        if key in LIKELY_SUBTAGS:
            return str(LIKELY_SUBTAGS[key]).split("-")[1]
    return _SCRIPT_OF.get(iso3)


# --------------------------------------------------------------------------- tables of langcodes
@lru_cache(maxsize=1)
def _alpha2_to_3() -> dict[str, str]:
    """Return ISO 639-1 → ISO 639-3 (or macrolanguage) codes."""
    import langcodes
    from langcodes.data_dicts import VALIDITY

    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = (first + second for first in letters for second in letters)
    codes: dict[str, str] = {}
    for pair in pairs:
        if VALIDITY.match(pair) and pair not in _RETIRED:
            try:
                codes[pair] = langcodes.Language.make(pair).to_alpha3()
            except LookupError:
                continue
    return codes


@lru_cache(maxsize=1)
def _alpha3_to_2() -> dict[str, str]:
    codes = {long: short for short, long in _alpha2_to_3().items()}
    return codes | {"fil": "fil", "twi": "tw", "nob": "no"}


@lru_cache(maxsize=1)
def _groups_by_member() -> dict[str, str]:
    kept = {"fil", "twi", "nob"}
    return {member: group for group, member in _MEMBER_OF.items() if member not in kept}


@lru_cache(maxsize=1)
def _scripts() -> frozenset[str]:
    from langcodes.data_dicts import ALL_SCRIPTS

    return frozenset(ALL_SCRIPTS) - _NO_SCRIPT


def _display(code: str, language: str) -> str:
    import langcodes

    canonical = canonical_language(code)
    iso3, script_code = canonical.split("_")
    tag = "nb" if iso3 == "nob" else alpha2(canonical)
    if script_code != _SCRIPT_FORM.get(_likely(iso3, None) or "", _likely(iso3, None)):
        tag = f"{tag}-{script_code}"
    elif iso3 == "cmn":
        tag = f"zh-{script_code}"
    name = langcodes.Language.get(tag, normalize=False).display_name(language)
    return str(name).replace(" (individual language)", "").translate(_ASCII_BRACKETS)


# --------------------------------------------------------------------------- refusals
def _refusal(text: object, reason: str) -> LanguageError:
    shown = str(text)[:MAX_SHOWN]
    shown = repr(shown) if shown.isprintable() else ascii(shown)
    cut = "…" if len(str(text)) > MAX_SHOWN else ""
    if "choose" in reason or "write it out" in reason:
        return LanguageError(f"{shown}{cut} {reason}")
    near = _nearest(str(text)[:MAX_INPUT])
    advice = f"; did you mean {near}?" if near else f". {_FORMS}"
    return LanguageError(f"{shown}{cut} {reason}{advice}")


def _nearest(text: str) -> str:
    """Return up to three names close to `text`, each with its code; short codes must be equal."""
    folded = "".join(char for char in unicodedata.normalize("NFKC", text) if char.isalpha())
    known = _known_names()
    cutoff = 0.75 if len(folded) > 3 else 1.0
    hits = difflib.get_close_matches(folded.lower(), known, n=3, cutoff=cutoff) if folded else []
    return ", ".join(dict.fromkeys(known[hit] for hit in hits))


@lru_cache(maxsize=1)
def _known_names() -> dict[str, str]:
    """Return lower-case English names and ISO 639-1 codes → what to show for them."""
    import langcodes

    names: dict[str, str] = {}
    for short, long in _alpha2_to_3().items():
        if long not in _GROUPS:
            name = langcodes.Language.get(short, normalize=False).display_name("en")
            names[short] = names[name.lower()] = f"{name} ({short})"
    return names
