"""Languages: many ways in, one canonical code inside."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_core.errors import LanguageError
from compass_core.languages import (
    alpha2,
    canonical_language,
    direction,
    language_name,
    native_name,
    script,
)

METHOD_CODES = (
    "am", "ar", "bn", "cs", "de", "el", "en", "es", "fa", "fil", "fr", "ha", "he", "hi", "id",
    "ig", "it", "ja", "ko", "ky", "lt", "mg", "ms", "ne", "nl", "ny", "pl", "pt", "ro", "ru",
    "si", "sn", "so", "sr", "sv", "sw", "te", "tr", "uk", "vi", "yo", "zh",
)  # fmt: skip
SIB200_CODES = (
    "af", "ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "hi", "hr",
    "hu", "id", "ig", "it", "ja", "ko", "mg", "mk", "mr", "ne", "nl", "no", "ny", "pl", "pt",
    "ru", "sq", "sr", "st", "sv", "sw", "ta", "tr", "uk", "vi", "wo", "yo", "zh",
)  # fmt: skip
MULTIQ_EXTRA = (
    "ak", "as", "ay", "az", "be", "bho", "bm", "bs", "ceb", "ckb", "co", "cy", "doi", "dv", "ee",
    "eo", "fy", "ga", "gd", "gn", "gom", "gu", "haw", "hmn", "hy", "ilo", "is", "ka", "kk", "km",
    "kn", "kri", "ku", "la", "lb", "lg", "ln", "lo", "lus", "lv", "mai", "mi", "ml", "mn", "mni",
    "mt", "nso", "om", "or", "pa", "ps", "rw", "sa", "sd", "sk", "sl", "sm", "tg", "ti", "tk",
    "ts", "tt", "ug", "uz", "xh", "yi", "zh-Hant",
)  # fmt: skip
HOSTILE = (
    "../../etc", "x;drop", "", " ", "EN ", " en", "a\0b", "en\0", "ｅｎ", "a" * 300, "sw\n", "-",
    "__", "123", "en/../..", "%00", "'; DROP TABLE x; --", "\u202esw", "swh_Latn/..", "sw_Latn_x;",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("sw", "swh_Latn"), ("swa", "swh_Latn"), ("swh", "swh_Latn"), ("swh_Latn", "swh_Latn"),
        ("SWH-latn", "swh_Latn"), ("Swahili", "swh_Latn"), ("kiswahili", "swh_Latn"),
        ("zh", "cmn_Hans"), ("zh-Hant", "cmn_Hant"), ("zh_TW", "cmn_Hant"), ("中文", "cmn_Hans"),
        ("Traditional Chinese", "cmn_Hant"), ("zh-yue", "yue_Hant"),
        ("ar", "arb_Arab"), ("ms", "zsm_Latn"), ("fa", "pes_Arab"), ("ne", "npi_Deva"),
        ("mg", "plt_Latn"), ("no", "nob_Latn"), ("et", "ekk_Latn"), ("lv", "lvs_Latn"),
        ("az", "azj_Latn"), ("uz", "uzn_Latn"), ("mn", "khk_Cyrl"), ("ps", "pbt_Arab"),
        ("sq", "als_Latn"), ("or", "ory_Orya"), ("ko", "kor_Hang"), ("ja", "jpn_Jpan"),
        ("sr", "srp_Cyrl"), ("sr-Latn", "srp_Latn"), ("sr-ME", "srp_Latn"), ("pt-BR", "por_Latn"),
        ("de-1996", "deu_Latn"), ("ger", "deu_Latn"), ("iw", "heb_Hebr"), ("tl", "fil_Latn"),
        ("Türkçe", "tur_Latn"), ("ESPAÑOL", "spa_Latn"), ("العربية", "arb_Arab"),
        ("Norwegian Bokmål", "nob_Latn"), ("Standard Malay", "zsm_Latn"), ("hmn", "mww_Latn"),
    ],
)  # fmt: skip
def test_tags_codes_and_names_have_one_canonical_form(text, code):
    assert canonical_language(text) == code


@pytest.mark.parametrize("text", sorted({*METHOD_CODES, *SIB200_CODES, *MULTIQ_EXTRA}))
def test_every_code_of_the_data_sets_is_known_and_every_name_leads_back(text):
    code = canonical_language(text)
    assert len(code) == 8
    assert code[3] == "_"
    assert canonical_language(code) == code
    assert canonical_language(language_name(code)) == code
    assert canonical_language(native_name(code)) == code
    assert canonical_language(f"{alpha2(code)}-{script(code)}") == code


def test_the_42_languages_of_the_method_stay_42():
    assert len(METHOD_CODES) == 42
    assert len({canonical_language(code) for code in METHOD_CODES}) == 42
    assert len({canonical_language(code) for code in SIB200_CODES}) == 43


@pytest.mark.parametrize("text", METHOD_CODES)
def test_alpha2_gives_back_the_code_that_hub_data_sets_use(text):
    assert alpha2(canonical_language(text)) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_input_is_refused_with_a_bounded_printable_message(text):
    with pytest.raises(LanguageError) as caught:
        canonical_language(text)
    message = str(caught.value)
    assert message.startswith("E43 ")
    assert message.isprintable()
    assert len(message) < 250


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("Swahilli", "did you mean Swahili (sw)?"),
        ("Norwegan", "did you mean Norwegian (no)"),
        ("EN ", "did you mean English (en)?"),
        ("sh", "choose srp, hrv, bos or cnr"),
        ("Serbo-Croatian", "choose srp, hrv, bos or cnr"),
        ("qu", "choose quy"),
        ("tlh", "write it out, for example tlh_Latn"),
        ("swh_Zzzz", "script that does not exist"),
        ("und", "does not name a language"),
        ("xx", "Use a tag (sw, zh-Hant)"),
    ],
)
def test_refusals_say_what_to_write_instead(text, advice):
    with pytest.raises(LanguageError, match="E43") as caught:
        canonical_language(text)
    assert advice in str(caught.value)


def test_names_carry_the_script_only_where_it_is_not_the_usual_one():
    assert language_name("srp_Cyrl") == "Serbian"
    assert language_name("srp_Latn") == "Serbian (Latin)"
    assert language_name("cmn_Hans") == "Chinese (Simplified)"
    assert native_name("cmn_Hant") == "中文 (繁體)"


def test_direction_follows_the_script():
    assert direction("ar") == "rtl"
    assert direction("he") == "rtl"
    assert direction("az-Arab") == "rtl"
    assert direction("sw") == "ltr"


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=70), st.text(string.ascii_letters + "-_ ", max_size=14)))
def test_anything_else_is_a_safe_code_or_a_refusal(text):
    try:
        code = canonical_language(text)
    except LanguageError as error:
        message = str(error)
        assert message.isprintable()
        return
    assert code[:3].isascii()
    assert code[:3].islower()
    assert code[3] == "_"
    assert code[4:].isalpha()
    assert canonical_language(code) == code
