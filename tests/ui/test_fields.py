"""The form and the settings agree."""

from __future__ import annotations

import pytest

from inference.settings import RestoreSettings, Settings, load_settings, to_dict
from seedvr_ui.fields import DEFAULT_SIZE, OPTIONS, SIZES, from_settings, make_input, option_infos, to_layer

DEFAULTS = [info.default for info in option_infos()]


def test_the_untouched_form_means_the_default_settings_at_the_default_size() -> None:
    settings = load_settings(to_layer(DEFAULT_SIZE, "auto", DEFAULTS))
    assert settings == Settings(restore=RestoreSettings(factor=2.0))


@pytest.mark.parametrize(("label", "choice"), SIZES)
def test_each_size_of_the_form_is_a_size_that_settings_accept(label: str, choice: str) -> None:
    restore = load_settings(to_layer(choice, "auto", DEFAULTS)).restore
    assert (restore.factor > 0) != (restore.resolution > 0), label


def test_the_chosen_model_reaches_the_engine_settings() -> None:
    assert load_settings(to_layer(DEFAULT_SIZE, "seedvr2-3b", DEFAULTS)).engine.model == "seedvr2-3b"


def test_a_changed_option_reaches_the_settings() -> None:
    values = [7 if key == "restore.seed" else default for key, default in zip(OPTIONS, DEFAULTS, strict=True)]
    assert load_settings(to_layer(DEFAULT_SIZE, "auto", values)).restore.seed == 7


@pytest.mark.parametrize("info", option_infos(), ids=lambda info: info.key)
def test_each_field_starts_with_the_default_under_its_own_label(info) -> None:  # type: ignore[no-untyped-def]
    field = make_input(info)
    assert (field.value, field.label) == (getattr(info.default, "value", info.default), info.label)


@pytest.mark.parametrize(("label", "choice"), SIZES)
def test_the_settings_of_a_form_fill_the_form_again(label: str, choice: str) -> None:
    options = [7 if key == "restore.seed" else default for key, default in zip(OPTIONS, DEFAULTS, strict=True)]
    settings = to_dict(load_settings(to_layer(choice, "nano", options)))
    values, missing = from_settings(settings, ["auto", "nano"])
    assert (values[:2], missing) == ([choice, "nano"], []), label
    assert values[2:] == options


def test_what_the_form_cannot_say_is_named() -> None:
    settings = to_dict(load_settings(["resolution=900", "fidelity=0.5", "model=seedvr2-3b"]))
    values, missing = from_settings(settings, ["auto", "nano"])
    assert values[:2] == [None, None]
    assert missing == ["Size", "Model", "Fidelity"]
