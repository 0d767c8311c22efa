"""runs.strict_yaml: what a person writes is read as it stands, or told by its line; never anything but ConfigError."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmask.errors import ConfigError
from fedmask.runs import strict_yaml
from fedmask.runs.strict_yaml import MAX_BYTES, MAX_VALUES, read_document, read_mapping, read_mapping_file


def faults_of(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read_mapping(text)
    assert all(fault.isprintable() for fault in caught.value.faults)
    return caught.value.faults


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a: 1\nb: -2\nc: 0\nd: +3", {"a": 1, "b": -2, "c": 0, "d": 3}),
        ("a: 1.5\nb: 1.0e-05\nc: .5\nd: -2.", {"a": 1.5, "b": 1e-5, "c": 0.5, "d": -2.0}),
        ("a: yes\nb: false\nc: On", {"a": True, "b": False, "c": True}),
        ("a: null\nb: ~\nc:", {"a": None, "b": None, "c": None}),
        ("a: 2024-01-01\nb: 2024-13-45\nc: =", {"a": "2024-01-01", "b": "2024-13-45", "c": "="}),
        ("a: 08\nb: 0o17\nc: 1e-3", {"a": "08", "b": "0o17", "c": "1e-3"}),
        ("a: '0777'\nb: \"no\"\nc: !!str 2024", {"a": "0777", "b": "no", "c": "2024"}),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}", {"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3}}),
        ("a: &x {k: 1}\nb: &y {k: 2, l: 2}\nc: {<<: [*x, *y]}", None),
        ("2024: a", {"2024": "a"}),
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ],
)
def test_it_is_read_as_it_stands(text: str, values: dict[str, Any] | None) -> None:
    content = read_mapping(text).content
    assert content == (values or yaml.safe_load(text))
    assert all(type(content[key]) is type(value) for key, value in (values or {}).items())


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), PLAIN, max_size=5))
def test_what_yaml_writes_is_read_back_equal(values: dict[str, Any]) -> None:
    assert read_mapping(yaml.safe_dump(values, sort_keys=False)).content == values


def test_how_a_value_stands_in_the_file_is_kept_where_it_is_no_text() -> None:
    found = read_mapping("a: no\nb: {c: 1.50, d: text, e: [~, x, 'no']}\n")
    assert found.written == {"a": "no", "b.c": "1.50", "b.e[0]": "~"}


# ---- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "base", "value"),
    [
        ("0777", "base 8", "511"),
        ("-010", "base 8", "-8"),
        ("0x1F", "base 16", "31"),
        ("0b11", "base 2", "3"),
        ("1:30", "base 60", "90"),
        ("190:20:30", "base 60", "685230"),
        ("1:30.5", "base 60", "90.5"),
        ("1_000", "with underscores", "1000"),
        ("1_0.5", "with underscores", "10.5"),
    ],
)
def test_a_number_in_another_base_is_told_with_what_yaml_makes_of_it(written: str, base: str, value: str) -> None:
    assert yaml.safe_load(written) == float(value)
    (fault,) = faults_of(f"# first\na: {{b: {written}}}")
    assert fault.startswith(f"line 2: a.b: {written}: YAML reads it")
    assert base in fault
    assert f'as {value}; write a decimal number, or "{written}" if it is a text' in fault


def test_a_key_that_stands_twice_is_told_with_both_lines() -> None:
    assert faults_of("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n") == (
        "line 5: b.c stands twice, first in line 3; leave one out",
        "line 6: a stands twice, first in line 1; leave one out",
    )
    assert read_mapping("a: {c: 1}\nb: {c: 2}").content == {"a": {"c": 1}, "b": {"c": 2}}


@pytest.mark.parametrize("key", ["no", "on", "null", "~", "1.5", "010", "true"])
def test_a_key_that_yaml_reads_as_another_value_is_told(key: str) -> None:
    assert yaml.safe_load(f"{key}: 1").keys().isdisjoint({key})
    (fault,) = faults_of(f"{key}: 1")
    assert fault == f'line 1: the key {key} is read as another value than a text; write "{key}"'
    assert read_mapping(f'"{key}": 1').content == {key: 1}


BOMB = "\n".join(["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))])
MERGES = "\n".join(["a0: &a0 {k: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not a configuration: expected a mapping of keys to values, found null"),
        ("# nothing", "not a configuration: expected a mapping of keys to values, found null"),
        ("- a", "not a configuration: expected a mapping of keys to values, found [a]"),
        ("word", "not a configuration: expected a mapping of keys to values, found word"),
        ("a: [", "not YAML: while parsing a flow node expected the node content, but found '<stream end>' in line 1"),
        ("a:\n\tb: 1", "not YAML: while scanning for the next token found character '\\t' that cannot start any token"),
        ("a: 1\n---\na: 2", "not YAML: expected a single document in the stream but found another document in line 2"),
        ("a: *x", "not YAML: found undefined alias 'x' in line 1"),
        ('a: "\\UFFFFFFFF"', "not YAML: "),
        ("a: \0", "not YAML: unacceptable character #x0000"),
        ("a: !!python/object:os.system x", "line 1: a: the tag python/object:os.system is not read; leave it out"),
        ('a: !!int "3"', "line 1: a: the tag int is not read; leave it out"),
        ("a: !mine {b: 1}", "line 1: a: the tag !mine is not read; leave it out"),
        ("? [a, b]\n: 1", "line 1: a key must be a word"),
        ("a: {<<: 3}", "line 1: <<: merges mappings only"),
        ("a: " + "9" * 200, "line 1: a: a number of 200 digits"),
        ("a: &a [*a]", "line 1: more than 30 mappings and lists in each other"),
        ("a: " + "[" * 100 + "]" * 100, "line 1: more than 30 mappings and lists in each other"),
        ("a: " + "[" * 20_000, "more than 30 mappings and lists in each other"),
        ("a: {" * 20_000, "more than 30 mappings and lists in each other"),
        (f"a: [{'1,' * MAX_VALUES}]", f"line 1: more than {MAX_VALUES:,} values, each alias written out"),
        (BOMB, f"line 1: more than {MAX_VALUES:,} values, each alias written out"),
        (MERGES, ""),
        ("a: " + "b" * MAX_BYTES, f"larger than {MAX_BYTES:,} bytes, which no configuration needs"),
    ],
    ids=lambda part: repr(part)[:30],
)
def test_what_is_no_configuration_is_one_line(text: str, fault: str) -> None:
    (found,) = faults_of(text)
    assert found.startswith(fault)


@settings(deadline=None, max_examples=300)
@given(st.text("abn01:-_.x[]{}&*<>!?,'\"#\n \t~=|", max_size=60) | st.text(max_size=40))
def test_any_text_is_a_document_or_lines(text: str) -> None:
    faults: tuple[str, ...] = ("none",)
    try:
        read_document(text)
    except ConfigError as error:
        faults = error.faults
    assert faults
    assert all(fault.isprintable() for fault in faults)


def test_a_fault_of_the_reader_itself_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_yaml._Reader, "_key", lambda self, node: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_mapping("a: 1")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a: caf\xe9", "not UTF-8 text: byte 7 is 0xe9"),
        ("a: 1".encode("utf-16"), "not UTF-8 text: byte 1 is 0xff"),
        (b"x" * (MAX_BYTES + 1), "larger than"),
        (b"a: 1\na: 2", "line 2: a stands twice, first in line 1"),
    ],
    ids=["latin-1", "utf-16", "huge", "twice"],
)
def test_a_fault_of_a_file_begins_with_its_path(content: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_mapping_file(path)
    assert str(caught.value).startswith(f"{path}: {fault}")


def test_a_path_without_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: there is no such file$"):
        read_mapping_file(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r": is a folder; name a file$"):
        read_mapping_file(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: caf\xc3\xa9")
    assert read_mapping_file(tmp_path / "a.yaml").content == {"a": "café"}
