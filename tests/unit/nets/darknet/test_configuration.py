"""Darknet's .cfg files: what is read, what is refused and how, what is written."""

from pathlib import Path

import pytest

from dist_net.errors import FileWriteError, ModelFileError
from dist_net.nets.darknet.configuration import (
    LARGEST_FILE_BYTES,
    Configuration,
    Section,
    parse_configuration,
    read_configuration,
    write_configuration,
)
from naming import naming

NET = "[net]\nheight=4\nwidth=4\nchannels=3\n"


def test_sections_hold_options_in_order_and_know_their_lines() -> None:
    text = (
        "# a comment\n[net]\nheight = 4\n\n; another\n[ convolutional ]\n\tfilters =\t8 \nsize=3\n"
    )
    assert parse_configuration(text, "a.cfg") == Configuration(
        (
            Section("net", {"height": "4"}, 2),
            Section("convolutional", {"filters": "8", "size": "3"}, 6),
        ),
        "a.cfg",
    )


def test_short_names_of_layers_mean_the_long_ones() -> None:
    text = "[network]\n[conv]\n[conn]\n[max]\n[avg]\n[soft]"
    kinds = [section.kind for section in parse_configuration(text, "a").sections]
    assert kinds == ["net", "convolutional", "connected", "maxpool", "avgpool", "softmax"]


def test_options_of_training_are_known() -> None:
    text = NET + "batch=1\nbatch=64\npolicy=poly\n[conv]\nlearning_rate=2\n[cost]\ntype=sse"
    net = parse_configuration(text, "a").net
    assert (net.options["policy"], net.options["batch"]) == ("poly", "1")


@pytest.mark.parametrize(
    ("text", "line", "values"),
    [
        ("", 1, ["[net]"]),
        ("[conv]\nsize=3", 1, ["[convolutional]", "[net]"]),
        ("height=3\n[net]", 1, ["height", "[net]"]),
        (NET + "[convolutionl]", 5, ["[convolutionl]", "convolutional"]),
        (NET + "[yolo]", 5, ["[yolo]"]),
        (NET + "[xyzzy]", 5, ["[xyzzy]", "net", "convolutional"]),
        (NET + "[conv", 5, ["'[conv'", "[kind]"]),
        (
            NET + "[conv]\nfilter=3",
            6,
            ["[convolutional]", "filter", "filters"],
        ),
        (NET + "[conv]\nxyzzy=3", 6, ["xyzzy", "batch_normalize", "filters"]),
        (NET + "[conv]\nsize", 6, ["'size'", "[kind]", "option=value"]),
        (NET + "[conv]\n=3", 6, ["'=3'", "[kind]", "option=value"]),
        (NET + "[conv]\nsize=3\nsize=1", 7, ["size", "line 6"]),
        (NET + "[conv]\nxnor=1", 6, ["xnor=1"]),
        (NET + "widht=3\n[conv]", 5, ["[net]", "widht", "width"]),
    ],
)
def test_what_is_no_network_is_refused_by_line(text: str, line: int, values: list[str]) -> None:
    with pytest.raises(ModelFileError, match=naming(*values)) as caught:
        parse_configuration(text, "a.cfg")
    assert str(caught.value).startswith(f"a.cfg:{line}: ")


def test_a_network_has_a_layer() -> None:
    with pytest.raises(ModelFileError, match=naming("a.cfg")):
        parse_configuration(NET, "a.cfg")


def section(**options: str) -> Section:
    lines = {name: 10 + i for i, name in enumerate(options)}
    return Section("maxpool", options, 9, lines, "a.cfg")


def test_options_are_read_as_what_they_are_for() -> None:
    given = section(size="3", scale="-.5", pad="1", layers="-1,4", activation="relu")
    assert given.integer("size", 1) == 3
    assert given.integer("stride", 2) == 2
    assert given.number("scale", 1.0) == -0.5
    assert given.flag("pad")
    assert not given.flag("batch_normalize")
    assert given.integers("layers") == [-1, 4]
    assert given.text("activation", "linear") == "relu"


@pytest.mark.parametrize("value", ["", "x", "1.5", "0", "-1", "3#three", "2147483648", "9" * 5000])
def test_what_is_no_such_number_is_refused_by_line(value: str) -> None:
    with pytest.raises(ModelFileError, match=naming("a.cfg:11", "size=", 1)):
        section(first="1", size=value).integer("size", 1, 1)


@pytest.mark.parametrize("value", ["", "x", "nan", "inf", "-inf", "1e300"])
def test_what_is_no_number_is_refused_by_line(value: str) -> None:
    with pytest.raises(ModelFileError, match=naming("a.cfg:10", "scale=")):
        section(scale=value).number("scale", 1.0)


def test_flags_and_lists_are_checked_too() -> None:
    with pytest.raises(ModelFileError, match=naming("pad=2", 0, 1)):
        section(pad="2").flag("pad")
    for value in ("", "1,", "a", "1;2"):
        with pytest.raises(ModelFileError, match=naming("a.cfg:10", "layers=")):
            section(layers=value).integers("layers")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    text = NET + "momentum=.9\n[conv]\nfilters=2\n[avgpool]\n[softmax]\n"
    written = parse_configuration(text, "a")
    write_configuration(written, tmp_path / "net.cfg")
    read = read_configuration(tmp_path / "net.cfg")
    assert read.name == str(tmp_path / "net.cfg")
    assert [(each.kind, each.options) for each in read.sections] == [
        (each.kind, each.options) for each in written.sections
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["net.cfg"]


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "net.cfg"
    path.write_bytes(b"\xef\xbb\xbf" + (NET + "[avgpool]\n").replace("\n", "\r\n").encode())
    assert len(read_configuration(path).layers) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"\xff\xd8\xff\xe0", "position 0"),
        (b"#" * (LARGEST_FILE_BYTES + 1), "at most 1,048,576"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "net.cfg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=words):
        read_configuration(path)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileWriteError, match=r"missing/net.cfg"):
        write_configuration(parse_configuration(NET + "[avg]", "a"), tmp_path / "missing/net.cfg")
