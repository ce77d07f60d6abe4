"""Tests of reading and writing strings and files in three formats."""

import math
import os
import resource
import stat

import pytest
import yaml

from ignite_hooks import GradientClipping
from ignite_hooks import SaveCheckpoint
from ignite_hooks.config import ConfigError
from ignite_hooks.config import RunSettings
from ignite_hooks.config import dumps
from ignite_hooks.config import equal
from ignite_hooks.config import load
from ignite_hooks.config import loads
from ignite_hooks.config import register
from ignite_hooks.config import save
from ignite_hooks.config.bounds import MAX_SIZE
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.handler import Handler

FORMATS = ["json", "toml", "yaml"]
SUFFIXES = [".json", ".toml", ".yaml", ".yml"]
CLIP = {
    "json": '{"type": "gradient_clipping", "max_norm": 1.0}',
    "toml": 'type = "gradient_clipping"\nmax_norm = 1.0\n',
    "yaml": "type: gradient_clipping\nmax_norm: 1.0\n",
}


@register("files.number")
@checked_dataclass
class Number(Handler):
    """Any number."""

    number: float = 1.0


@pytest.fixture
def clip():
    return GradientClipping(max_norm=1.0)


@pytest.fixture
def settings(clip):
    return RunSettings(
        seed=1,
        grad_clip=clip,
        checkpoint=SaveCheckpoint(directory="läufe/1:30", every_epochs=1),
        handlers=(GradientClipping(max_norm=math.inf, norm_type=math.inf), Number(number=-0.0)),
    )


@pytest.mark.parametrize("format", FORMATS)
def test_settings_come_back_from_a_string(settings, format):
    text = dumps(settings, format)
    read = loads(text, format)
    assert equal(read, settings)
    assert dumps(read, format) == text


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JSON", ".Toml", ".YAML", ".Yml"])
def test_settings_round_trip_through_a_file_by_suffix(tmp_path, settings, suffix):
    path = tmp_path / f"run.v1{suffix}"
    save(settings, path)
    assert equal(load(path), settings)
    format = suffix.lower().strip(".").replace("yml", "yaml")
    assert path.read_bytes().decode("utf-8") == dumps(settings, format)
    assert equal(load(str(path)), settings)


def test_json_is_the_default(clip):
    assert dumps(clip) == dumps(clip, "json")


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e-3, -0.0, 5e-324])
@pytest.mark.parametrize("format", FORMATS)
def test_any_float_survives(format, number):
    read = loads(dumps(Number(number=number), format), format)
    assert repr(read.number) == repr(number)


@pytest.mark.parametrize("format", FORMATS)
def test_keys_are_in_the_order_of_the_fields(format):
    first = dumps(GradientClipping(max_norm=1.0, norm_type=2.0), format)
    assert first == dumps(GradientClipping(norm_type=2.0, max_norm=1.0), format)
    assert first.index("type") < first.index("max_norm") < first.index("norm_type")


def test_toml_leaves_out_fields_that_are_none(clip):
    assert dumps(clip, "toml") == 'type = "gradient_clipping"\nmax_norm = 1.0\nnorm_type = 2.0\n'
    for format in ("json", "yaml"):
        assert "clip_value" in dumps(clip, format)


@pytest.mark.parametrize("format", FORMATS)
def test_defaults_can_be_left_out(tmp_path, clip, format):
    save(clip, tmp_path / f"clip.{format}", exclude_defaults=True)
    text = (tmp_path / f"clip.{format}").read_text()
    assert text == dumps(clip, format, exclude_defaults=True)
    assert "max_norm" in text
    assert "norm_type" not in text
    assert equal(load(tmp_path / f"clip.{format}"), clip)


@pytest.mark.parametrize("format", ["json", "yaml"])
def test_a_list_of_handlers_comes_back(clip, format):
    assert equal(loads(dumps([clip, clip], format), format), [clip, clip])


@pytest.mark.parametrize("format", FORMATS)
def test_a_mapping_of_handlers_comes_back(clip, format):
    named = {"no": clip, "a.b": clip, "1e-3": clip}
    assert equal(loads(dumps(named, format), format), named)


def test_list_of_handlers_is_refused_in_toml(clip):
    with pytest.raises(ConfigError, match="TOML must have a mapping at its top"):
        dumps([clip], "toml")


def test_value_that_a_format_would_change_is_refused():
    @register("files.surprise")
    @checked_dataclass
    class Surprise(Handler):
        anything: int | float | str = 1

    with pytest.raises(
        ConfigError, match=r"^anything: the value must be the same after writing and reading"
    ):
        dumps(Surprise(anything=math.inf), "json")
    for format in ("toml", "yaml"):
        assert equal(
            loads(dumps(Surprise(anything=math.inf), format), format), Surprise(anything=math.inf)
        )


@pytest.mark.parametrize("format", ["JSON", "yml", "", "ini", None, ["json"], 3])
def test_error_for_an_unknown_format_names_the_formats(clip, format):
    for call in (lambda: dumps(clip, format), lambda: loads("{}", format)):
        with pytest.raises(ValueError, match="`format` must be one of json, toml, yaml, got "):
            call()


def test_misspelt_format_is_answered_with_a_suggestion():
    with pytest.raises(ValueError, match="got 'YML'; did you mean `yaml`"):
        loads("{}", "YML")


def test_error_for_swapped_arguments_is_short():
    with pytest.raises(ValueError, match="must be one of json, toml, yaml") as caught:
        loads("json", "x" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["run", "run.ini", "run.yaml.txt", ".yaml", "yaml"])
def test_an_unknown_suffix_is_an_error_and_no_file(tmp_path, clip, name):
    for call in (lambda: save(clip, tmp_path / name), lambda: load(tmp_path / name)):
        with pytest.raises(
            ValueError, match=rf"`path` must end in one of \.json, \.toml, .*, got .*{name}: write"
        ):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [b"{}", None, 3, {"type": "clear_cache"}])
def test_text_of_another_type_is_a_type_error(text):
    with pytest.raises(TypeError, match="`text` must be a str, got "):
        loads(text, "json")


@pytest.mark.parametrize("text", ["", " \n\t\n"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_text_that_is_empty_is_an_error(format, text):
    with pytest.raises(
        ConfigError, match="must have a mapping or a list, got an empty text: check"
    ):
        loads(text, format)


@pytest.mark.parametrize(
    ("format", "text"),
    [("json", "null"), ("json", "3"), ("json", '"null"'), ("yaml", "null"), ("yaml", "'null'"),
     ("yaml", "# only this"), ("yaml", "2020-01-01"), ("yaml", "gradient_clipping")],
)  # fmt: skip
def test_text_without_a_mapping_is_refused_with_a_remedy(format, text):
    with pytest.raises(ConfigError, match=r"must be a mapping with `type`, or a list or .*, got "):
        loads(text, format)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("json", '{"type": "gradient_clipping", "max_norm": 1.'),
        ("json", '{"type": "clear_cache", "type": "gradient_clipping", "max_norm": 1.0}'),
        ("json", '{"type": "gradient_clipping", "max_norm": Infinity}'),
        ("toml", 'type = "gradient_clipping\nmax_norm = 1.0'),
        ("toml", 'type = "gradient_clipping"\nmax_norm = 1.0\nmax_norm = 2.0'),
        ("toml", "null"),
        ("yaml", "type: !!python/name:os.system"),
        ("yaml", "type: !handler gradient_clipping"),
        ("yaml", "type: gradient_clipping\nmax_norm: 1.0\nmax_norm: 2.0"),
        ("yaml", "{type: gradient_clipping, max_norm: 1.0"),
    ],
)
def test_unreadable_text_error_names_the_format(tmp_path, format, text):
    with pytest.raises(ConfigError, match=f"^it cannot be read as {format.upper()}: "):
        loads(text, format)
    path = tmp_path / f"clip.{format}"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: it cannot be read as {format.upper()}: ")


@pytest.mark.parametrize("format", FORMATS)
def test_wrong_value_error_has_file_path_rule_value_and_remedy(tmp_path, format):
    path = tmp_path / f"clip.{format}"
    path.write_text(CLIP[format].replace("1.0", "-1.0"))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: max_norm: `max_norm` must be a number > 0, got -1.0; "
        "leave the clipping out to have none"
    )
    assert caught.value.source == str(path)
    assert [problem.path for problem in caught.value.problems] == ["max_norm"]


def test_text_may_have_up_to_a_mebibyte(clip):
    text = CLIP["json"]
    assert equal(loads(text.ljust(MAX_SIZE), "json"), clip)
    with pytest.raises(ConfigError, match="must be at most 1048576 bytes, got 1048577"):
        loads(text.ljust(MAX_SIZE + 1), "json")


def test_size_of_a_text_is_counted_in_bytes():
    with pytest.raises(ConfigError, match="must be at most 1048576 bytes, got 1048578"):
        loads('"' + "é" * (MAX_SIZE // 2) + '"', "json")


@pytest.mark.parametrize("format", FORMATS)
def test_oversized_text_is_refused_unread(tmp_path, format):
    with pytest.raises(ConfigError, match="must be at most 1048576 bytes"):
        loads("\0" * (MAX_SIZE + 1), format)
    path = tmp_path / f"large.{format}"
    path.write_bytes(b"\xff" * (MAX_SIZE * 2))
    with pytest.raises(ConfigError, match=f"large.{format}: the text must be at most 1048576"):
        load(path)


@pytest.mark.parametrize("format", FORMATS)
def test_text_too_deep_for_its_format_is_a_config_error(format):
    # Newer versions of libyaml have a limit of their own.
    message = r"^lists and mappings must be nested at most 32 deep|exceeded maximum nesting depth$"
    with pytest.raises(ConfigError, match=message):
        loads("x = " * (format == "toml") + "[" * 100_000, format)


def test_toml_too_deep_only_by_dotted_keys_is_a_config_error():
    key = ".".join("a" * 32)
    with pytest.raises(ConfigError, match="at most 32 deep"):
        loads(f"[{key}]\n" + f"{key} = {{" * 10 + "}" * 10, "toml")


def test_a_lone_surrogate_is_a_value_error():
    for format in FORMATS:
        with pytest.raises(ValueError, match=r"must be|cannot be read"):
            loads("\ud800", format)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_that_is_not_utf_8_is_an_error(tmp_path, encoding, suffix):
    path = tmp_path / f"run{suffix}"
    path.write_bytes("directory = ä".encode(encoding))
    with pytest.raises(ConfigError, match=r"run\.\w+: it must be UTF-8: .*can't decode byte"):
        load(path)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path, clip, format, newline):
    path = tmp_path / f"clip.{format}"
    path.write_bytes(b"\xef\xbb\xbf" + CLIP[format].replace("\n", newline).encode())
    assert equal(load(path), clip)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_empty_is_an_error_with_its_name(tmp_path, suffix):
    path = tmp_path / f"run{suffix}"
    for content in (b"", b"\xef\xbb\xbf\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"run{suffix}: the text must have .*, got an empty"):
            load(path)


def test_a_file_that_is_missing_is_an_os_error_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run\.yaml"):
        load(tmp_path / "run.yaml")


def test_a_folder_is_an_os_error_with_its_name(tmp_path, clip):
    (tmp_path / "run.yaml").mkdir()
    for call in (lambda: load(tmp_path / "run.yaml"), lambda: save(clip, tmp_path / "run.yaml")):
        with pytest.raises(OSError, match=r"run\.yaml"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_folder_that_is_missing_is_an_os_error_with_its_name(tmp_path, clip):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(clip, tmp_path / "nowhere" / "run.yaml")


def test_save_replaces_an_existing_file(tmp_path, clip, settings):
    save(settings, tmp_path / "run.json")
    save(clip, tmp_path / "run.json")
    assert equal(load(tmp_path / "run.json"), clip)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_failed_save_keeps_the_existing_file(tmp_path, clip):
    save(clip, tmp_path / "run.json")
    with pytest.raises(ConfigError):
        save([clip, print], tmp_path / "run.json")
    assert equal(load(tmp_path / "run.json"), clip)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_full_disk_leaves_the_old_file_only(tmp_path, clip, settings):
    save(clip, tmp_path / "run.json")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            save(settings, tmp_path / "run.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert equal(load(tmp_path / "run.json"), clip)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_saved_file_has_the_usual_mode(tmp_path, clip):
    before = os.umask(0o027)
    try:
        save(clip, tmp_path / "run.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == 0o640


def test_other_yaml_readers_read_the_same(settings):
    read = yaml.safe_load(dumps(settings, "yaml"))
    assert read["checkpoint"]["directory"] == os.path.abspath("läufe/1:30")
    assert read["handlers"][0]["max_norm"] == math.inf


def test_a_file_in_the_home_directory_can_be_named_by_tilde(tmp_path, monkeypatch, clip):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(clip, "~/run.json")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert equal(load("~/run.json"), clip)


def test_a_file_must_describe_what_is_expected(tmp_path, clip):
    path = tmp_path / "clip.yaml"
    save(clip, path)
    assert equal(load(path, GradientClipping), load(path, Handler))
    message = "clip.yaml: it must describe a RunSettings, got a GradientClipping: set its `type` to"
    with pytest.raises(ConfigError, match=f"{message} 'run'"):
        load(path, RunSettings)
    with pytest.raises(ConfigError, match=r"it must describe a Handler, got a list$"):
        loads("[]", "json", Handler)
