"""Scheme strings, grids and scale shapes."""

from __future__ import annotations

import pytest

from edgeqat.errors import SchemeError
from edgeqat.scheme import WIDTHS, Scheme, grid_of, group_count, scale_shape


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("w4a8kv4", (4, 8, 4)),
        ("W3A4KV2", (3, 4, 2)),
        (" w1a6kv3 ", (1, 6, 3)),
        ("w2a32", (2, 16, 16)),
        ("kv4", (16, 16, 4)),
        ("a8", (16, 8, 16)),
        ("w8", (8, 16, 16)),
        ("w6kv8", (6, 16, 8)),
        ("w16a16kv16", (16, 16, 16)),
    ],
)
def test_schemes_are_read(text, bits):
    scheme = Scheme.parse(text)
    assert (scheme.weight_bits, scheme.activation_bits, scheme.kv_bits) == bits


def test_every_width_of_every_part_is_written_as_it_is_read():
    for weights in WIDTHS["w"][1]:
        for activations in WIDTHS["a"][1]:
            for cache in WIDTHS["kv"][1]:
                scheme = Scheme.parse(f"w{weights}a{activations}kv{cache}")
                assert Scheme.parse(str(scheme)) == scheme


def test_missing_parts_and_32_are_written_as_16():
    assert str(Scheme.parse("w4")) == str(Scheme.parse("w4a32kv32")) == "w4a16kv16"


def test_only_all_float_is_float():
    assert Scheme.parse("w32a16").is_float
    assert not any(Scheme.parse(text).is_float for text in ("w8", "a8", "kv8"))


@pytest.mark.parametrize(
    "text", ["", " ", "w", "4", "int4", "a8w4", "kv4w4", "w4a8kv4x", "w4 a8", "w4.5", "w-4", "w4w8"]
)
def test_other_forms_are_refused(text):
    with pytest.raises(SchemeError, match="not of the form"):
        Scheme.parse(text)


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        ("w9a8", "9-bit weights"),
        ("w5", "5-bit weights"),
        ("a1", "1-bit activations"),
        ("w4a7", "7-bit activations"),
        ("w4a8kv5", "5-bit KV cache"),
        ("kv1", "1-bit KV cache"),
        ("w0", "0-bit weights"),
    ],
)
def test_widths_that_do_not_exist_are_named_with_the_choices(text, noun):
    with pytest.raises(SchemeError, match=noun) as caught:
        Scheme.parse(text)
    assert "choose" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("bits", "qmin", "qmax", "top"),
    [
        (8, -128, 127, 127),
        (6, -32, 31, 31),
        (4, -8, 7, 7),
        (3, -4, 3, 3),
        (2, -2, 1, 1.5),
        (1, -1, 0, 0.5),
    ],
)
def test_grids_have_their_levels(bits, qmin, qmax, top):
    grid = grid_of(bits)
    assert (grid.qmin, grid.qmax, grid.top) == (qmin, qmax, top)
    assert grid.half_step == (bits <= 2)


def test_half_step_levels_are_symmetric():
    for bits in (1, 2):
        grid = grid_of(bits)
        levels = [code + grid.offset for code in range(grid.qmin, grid.qmax + 1)]
        assert levels == [-level for level in reversed(levels)]
        assert levels == {1: [-0.5, 0.5], 2: [-1.5, -0.5, 0.5, 1.5]}[bits]


@pytest.mark.parametrize(
    ("columns", "size", "groups"), [(1, 32, 1), (128, 128, 1), (129, 128, 2), (576, 128, 5)]
)
def test_the_last_group_may_be_short(columns, size, groups):
    assert group_count(columns, size) == groups


def test_scales_never_have_zero_dimensions():
    assert scale_shape((5, 160), "per_tensor", None) == (1, 1)
    assert scale_shape((5, 160), "per_channel", None) == (5, 1)
    assert scale_shape((5, 160), "per_group", 128) == (5, 2)
