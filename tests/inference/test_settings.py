"""Settings: layers, types, limits, help for typing errors, and the way to JSON and back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.errors import SettingsError
from inference.settings import (
    ColorFix,
    EncodePreset,
    EngineSettings,
    Precision,
    RestoreSettings,
    describe,
    load_settings,
    to_dict,
)


def test_without_layers_every_setting_has_its_default() -> None:
    settings = load_settings()

    assert settings.restore == RestoreSettings()
    assert settings.engine == EngineSettings()


def test_a_later_layer_wins_and_leaves_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("engine:\n  model: nano\nrestore:\n  seed: 1\n  factor: 3\n")

    settings = load_settings(file, ["restore.seed=2"], {"restore": {"encode": {"quality": 20}}})

    assert (settings.engine.model, settings.restore.seed, settings.restore.factor) == ("nano", 2, 3.0)
    assert settings.restore.encode.quality == 20


def test_settings_survive_json() -> None:
    settings = load_settings(
        ["factor=1.5", "color_fix=lab", "precision=bfloat16", "keep_audio=false", "preset=slow", "weights=a=b, c: d"]
    )

    assert load_settings(json.loads(json.dumps(to_dict(settings)))) == settings


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("seed=7", "seed", 7),
        ("restore.seed=7", "seed", 7),
        ("factor=2", "factor", 2.0),
        ("detect_shots=no", "detect_shots", False),
        ("color_fix=WAVELET", "color_fix", ColorFix.WAVELET),
        ("box=1920×1080", "box", "1920×1080"),
    ],
)
def test_values_get_the_type_of_their_setting(text: str, key: str, value: Any) -> None:
    found = getattr(load_settings([text]).restore, key)

    assert found == value
    assert type(found) is type(value)


def test_enums_are_enums_after_loading() -> None:
    settings = load_settings({"engine": {"precision": "float16"}, "restore": {"encode": {"preset": "fast"}}})

    assert settings.engine.precision is Precision.FLOAT16
    assert settings.restore.encode.preset is EncodePreset.FAST


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("sed=4", "did you mean restore.seed?"),
        ("restore.encode.qualty=3", "did you mean restore.encode.quality?"),
        ("color_fix=wavlet", "did you mean wavelet?"),
        ("encoder.x=3", "no setting"),
        ("restore=3", "group of settings"),
        ("seed=x", "whole number"),
        ("seed=1.5", "whole number"),
        ("keep_audio=maybe", "true or false"),
        ("factor=nan", "not a number"),
        ("factor=inf", "not a number"),
        ("factor=17", "largest value is 16"),
        ("resolution=-1", "smallest value is 0"),
        ("window=8", "for example 5"),
        ("fidelity=-0.5", "0 to 1"),
        ("box=12", "1920x1080"),
        ("box=0x5", "1920x1080"),
        ("box=99999x5", "too large"),
        ("device=tpu", "cpu, cuda"),
        ("device=cuda:x", "cpu, cuda"),
        ("seed", "key=value"),
        ("seed=${oc.env:HOME}", "may not contain"),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_one_sentence(text: str, part: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings([text])

    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, True])
def test_a_json_value_of_another_kind_is_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="whole number"):
        load_settings({"restore": {"seed": value}})


def test_only_one_setting_may_decide_the_size() -> None:
    with pytest.raises(SettingsError, match="resolution and factor"):
        load_settings(["resolution=720", "factor=2"])


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "\x00", ""])
def test_a_settings_file_that_is_none_is_refused_or_empty(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)

    if content:
        with pytest.raises(SettingsError, match="settings file"):
            load_settings(file)
    else:
        assert load_settings(file) == load_settings()


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.yaml"):
        load_settings(tmp_path / "missing.yaml")


def test_every_setting_has_a_label_and_a_help_text() -> None:
    infos = list(describe())

    assert {"engine.model", "restore.seed", "restore.encode.quality"} <= {info.key for info in infos}
    assert all(info.label and info.help for info in infos)


def test_names_of_settings_are_unique_so_that_short_ones_work() -> None:
    names = [info.key.rpartition(".")[2] for info in describe()]

    assert len(names) == len(set(names))


def test_settings_errors_progress_and_the_worker_client_do_not_load_torch() -> None:
    code = (
        "import sys, inference.settings, inference.errors, inference.progress, inference.worker, inference.cli;"
        "inference.settings.load_settings(); sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], timeout=60, cwd=Path(__file__).parents[2]).returncode == 0
