"""Ranges, settings and prices in a person's words."""

from __future__ import annotations

import pytest

from inference.errors import SettingsError
from inference.settings import load_settings, to_dict
from seedvr_ui.price import parse_price
from seedvr_ui.wording import about_range, settings_words, to_range, to_size_range


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.5, 3, "less than 5 s"),
        (12, 14, "10–15 s"),
        (170, 290, "2–5 min"),
        (40, 290, "less than 5 min"),
        (120, 120, "2 min"),
        (5000, 5500, "83–92 min"),
        (5500, 6500, "1.5–2 h"),
        (7200, 7200, "2 h"),
    ],
)
def test_a_range_of_time_is_no_finer_than_is_honest(low: float, high: float, words: str) -> None:
    assert to_range(low, high) == words


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(40e6, 90e6, "40–90 MB"), (0.4e9, 1.2e9, "0.4–1.2 GB"), (120e6, 340e6, "120–340 MB"), (1e3, 1e3, "1.0 kB")],
)
def test_a_range_of_sizes_has_the_unit_of_the_larger_one(low: float, high: float, words: str) -> None:
    assert to_size_range(low, high) == words


def test_only_settings_that_differ_from_the_defaults_are_told() -> None:
    assert settings_words(to_dict(load_settings())) == [("Size", "2×")]
    changed = load_settings(["resolution=1080", "seed=7", "keep_audio=false", "model=nano", "weights=/secret/place"])
    words = dict(settings_words(to_dict(changed)))
    assert words.pop("Model")
    assert words == {"Size": "1080p", "Seed": "7", "Keep sound": "no"}


@pytest.mark.parametrize(
    ("text", "cost"), [("0.79 USD", "1.58 USD"), ("0.79", "1.58"), ("$0.79", "$1.58"), ("2 credits", "4.00 credits")]
)
def test_a_price_keeps_the_currency_as_it_was_written(text: str, cost: str) -> None:
    price = parse_price(text)
    assert price is not None
    assert price.of(7200) == cost


def test_no_price_is_no_price_and_nonsense_is_told() -> None:
    assert parse_price("  ") is None
    for text in ("cheap", "-1 USD", "1,50 EUR a", "nan"):
        with pytest.raises(SettingsError, match="such as '0.79 USD'"):
            parse_price(text)


def test_a_limit_is_not_about() -> None:
    assert (about_range(1, 4), about_range(170, 290)) == ("less than 5 s", "about 2–5 min")
