"""The published classifiers: what is known of their files, and Debian's copies of their .cfg."""

from pathlib import Path

import pytest

from dist_net.errors import ModelSourceError
from dist_net.nets.darknet.configuration import OPTIONS, Configuration, read_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import PUBLISHED, published
from naming import naming

DEBIAN = Path("/usr/share/darknet/cfg")

# The sizes that the site's table gives, rounded there to whole megabytes.
MEGABYTES = {
    "alexnet": 238,
    "darknet": 28,
    "vgg-16": 528,
    "extraction": 90,
    "darknet19": 80,
    "resnet50": 87,
    "densenet201": 66,
    "darknet53": 159,
}


def meaning(configuration: Configuration) -> list[tuple[str, dict[str, float | str]]]:
    """What a network computes: no options of training, no cost, numbers as numbers."""
    return [
        (
            section.kind,
            {
                name: number(value)
                for name, value in section.options.items()
                if name in OPTIONS[section.kind].split()
            },
        )
        for section in configuration.sections
        if section.kind != "cost"
    ]


def number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_the_one_in_debians_package(name: str) -> None:
    path = DEBIAN / f"{name}.cfg"
    if not path.exists():
        pytest.skip(f"there is no {path} here (Debian's package darknet)")
    assert meaning(published(name).configuration()) == meaning(read_configuration(path))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_tells_1000_classes_apart(name: str) -> None:
    network = DarknetNetwork(published(name).configuration())
    assert network.layers[-1].output_shape == (1, 1, 1, 1000)
    megabytes = 4 * network.layout.size / 2**20
    assert megabytes == pytest.approx(MEGABYTES.get(name, megabytes), abs=0.6)


def test_the_file_of_darknet53_has_the_published_length() -> None:
    classifier = published("darknet53")
    network = DarknetNetwork(classifier.configuration())
    assert network.layout.size == 41_645_640
    file = classifier.weights_file()
    assert (file.name, file.sizes_bytes) == ("darknet53.weights", (166_582_580,))


def test_a_network_can_be_had_for_another_size() -> None:
    small = DarknetNetwork(published("darknet53").configuration(64))
    assert small.input_shape == (64, 64, 3)
    assert small.layout.size == 41_645_640


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelSourceError, match=naming("'darknet54'", "darknet53")):
        published("darknet54")
    with pytest.raises(ModelSourceError, match=naming("'xyzzy'", "alexnet", "darknet", "vgg-16")):
        published("xyzzy")
