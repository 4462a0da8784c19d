"""Options from four places, and every way to get one wrong."""

import dataclasses

import pytest

from edgekv.config import (
    ANSWER_FIELDS,
    FIELDS,
    GIB,
    Config,
    Options,
    environment_name,
    load_config,
    parse_bytes,
)
from edgekv.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2 * GIB),
        ("512MB", 512_000_000),
        ("1.5 G", 3 * GIB // 2),
        ("4096", 4096),
        ("0", 0),
        ("8 mib", 8 * 1024**2),
    ],
)
def test_sizes(text, expected):
    """Guards binary against decimal units: 2GiB and 2GB differ by 7 %."""
    assert parse_bytes(text) == expected


def test_precedence(tmp_path):
    """Guards option > environment > TOML > default, for one field in each place."""
    toml = tmp_path / "edgekv.toml"
    toml.write_text('top_k = 1\nmin_p = 0.1\ntemperature = 0.1\nhost_budget = "1GiB"\n')
    environ = {"EDGEKV_TOP_K": "2", "EDGEKV_MIN_P": "0.2", "EDGEKV_DATA_DIR": str(tmp_path)}
    config = load_config({"top_k": 3}, environ=environ)
    assert (config.top_k, config.min_p, config.temperature, config.host_budget) == (3, 0.2, 0.1, GIB)
    assert config.max_tokens == 512


def test_an_explicit_file_wins_over_the_one_beside_the_data(tmp_path):
    """Guards --config and EDGEKV_CONFIG."""
    (tmp_path / "edgekv.toml").write_text("top_k = 1")
    other = tmp_path / "other.toml"
    other.write_text("top_k = 2")
    options = {"data_dir": tmp_path}
    assert load_config(options, environ={}).top_k == 1
    assert load_config(options, environ={}, config_path=other).top_k == 2
    assert load_config(options, environ={"EDGEKV_CONFIG": str(other)}).top_k == 2


@pytest.mark.parametrize(
    ("options", "environ", "toml", "message"),
    [
        ({"temprature": 1}, {}, "", "temprature; did you mean temperature"),
        ({}, {"EDGEKV_TOPK": "1"}, "", "EDGEKV_TOPK; did you mean EDGEKV_TOP_K"),
        ({}, {"EDGEKV_top_k": "1"}, "", "EDGEKV_top_k"),
        ({}, {}, "modle = 'x'", "modle; did you mean model"),
        ({}, {}, "top_k = ", "not valid TOML"),
        ({}, {}, "top_k = '5'\nmax_tokens = 1.5", "max_tokens in .* is 1.5"),
        ({"top_p": 0}, {}, "", "option top_p is 0"),
        ({"temperature": "nan"}, {}, "", "temperature"),
        ({"device": "gpu"}, {}, "", r"gpu.*auto\|cpu\|cuda"),
        ({"host_budget": "many"}, {}, "", "2GiB"),
        ({"max_tokens": 0}, {}, "", "max_tokens"),
        ({"seed": True}, {}, "", "seed"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path, options, environ, toml, message):
    """Guards against a misspelt or ill-typed option that silently does nothing."""
    (tmp_path / "edgekv.toml").write_text(toml)
    with pytest.raises(ConfigError, match=message):
        load_config({"data_dir": tmp_path, **options}, environ=environ)


def test_missing_config_file_is_an_error(tmp_path):
    """Guards against --config pointing nowhere and being ignored."""
    with pytest.raises(ConfigError, match="cannot read"):
        load_config({}, environ={}, config_path=tmp_path / "none.toml")


def test_stop_is_one_text_or_a_list(tmp_path):
    """Guards against a stop string being taken apart into characters."""
    assert load_config({"stop": "END"}, environ={}).stop == ("END",)
    assert load_config({"stop": ["a", "b"]}, environ={}).stop == ("a", "b")
    assert load_config({}, environ={"EDGEKV_STOP": '["a", "b"]'}).stop == ("a", "b")


@pytest.mark.parametrize("text", ["[END]", "[INST]", "[1]", "[", '["a"]'])
def test_stop_in_brackets_is_plain_text(tmp_path, text):
    """Guards stop="[INST]": only a variable, which has no other way, may spell a list of texts."""
    assert load_config({"stop": text}, environ={}).stop == (text,)
    (tmp_path / "edgekv.toml").write_text(f"stop = '{text}'")
    assert load_config({"data_dir": tmp_path}, environ={}).stop == (text,)
    expected = ("a",) if text == '["a"]' else (text,)
    assert load_config({}, environ={"EDGEKV_STOP": text}).stop == expected


def test_one_table():
    """Guards the table: each row has a manual entry, and the typed keywords name the same fields."""
    assert set(Options.__annotations__) == set(FIELDS)
    assert set(ANSWER_FIELDS) < set(FIELDS)
    for field in dataclasses.fields(Config):
        assert field.metadata["help"].endswith("."), field.name
        assert field.metadata["metavar"], field.name
        assert environment_name(field.name).startswith("EDGEKV_")


def test_per_answer_options_are_only_those(tmp_path):
    """Guards send(..., model=...) against pretending to work."""
    config = Config(data_dir=tmp_path)
    assert config.replace({"top_k": "4"}, only=ANSWER_FIELDS).top_k == 4
    with pytest.raises(ConfigError, match="unknown option: model"):
        config.replace({"model": "x"}, only=ANSWER_FIELDS)
