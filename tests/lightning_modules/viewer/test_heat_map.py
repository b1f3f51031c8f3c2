"""The picture of a completion: its cells agree with its numbers, and nothing in it leaves the frame."""

import math
from xml.etree import ElementTree

import pytest

from lightning_modules.viewer import Quantity, TokenNumbers, heat_map_svg
from lightning_modules.viewer.heat_map import color_at, color_bound

SVG = "{http://www.w3.org/2000/svg}"
WEIGHT, SHARE = Quantity("weight", "weight"), Quantity("share", "concentration", scale="share")


def numbers(**changes):
    """Numbers of four tokens, the second of which is clipped and the last not trained."""
    values = {"weight": [-0.5, 0.0, 0.5, math.nan], "share": [1 / 3, 2 / 3, 1 / 6, math.nan]}
    fields = {"texts": ["a", " b", "\n", "<c>"], "values": values, "marks": {"clipped": [False, True, False, False]}}
    return TokenNumbers(step=1, **{**fields, **changes})


def cells(svg):
    """Text, fill and whether it is marked, of each cell."""
    rectangles = [one for one in ElementTree.fromstring(svg).iter(f"{SVG}rect") if one.get("rx") == "3"]
    texts = [one for one in ElementTree.fromstring(svg).iter(f"{SVG}text") if one.get("textLength")]
    return [
        (text.text, rectangle.get("fill"), rectangle.get("stroke-width") == "2")
        for text, rectangle in zip(texts, rectangles, strict=True)
    ]


def test_cells_have_the_color_of_their_numbers():
    assert cells(heat_map_svg(numbers(), [WEIGHT], "title")) == [
        ("a", "rgb(33, 102, 172)", False),
        ("\u00b7b", "rgb(255, 255, 255)", True),
        ("\u23ce", "rgb(205, 92, 8)", False),
        ("<c>", "rgb(240, 240, 240)", False),
    ]


def test_a_share_is_colored_by_its_multiple_of_an_equal_share_of_the_tokens_with_a_number():
    svg = heat_map_svg(numbers(), [SHARE], "title")
    assert [fill for _, fill, _ in cells(svg)][:3] == ["rgb(255, 255, 255)", "rgb(205, 92, 8)", "rgb(33, 102, 172)"]
    assert ["0.5 \u00d7" in svg, "equal share" in svg, "2 \u00d7" in svg] == [True] * 3


def test_negative_shares_are_at_the_lower_end():
    """As a Lehmer mean of the order 2 gives them."""
    svg = heat_map_svg(numbers(values={"share": [1.2, -0.1, 0.0, -0.1]}), [SHARE], "title")
    assert [fill for _, fill, _ in cells(svg)] == ["rgb(205, 92, 8)", *["rgb(33, 102, 172)"] * 3]


def test_clipped_tokens_are_marked_and_explained_only_where_there_are_some():
    assert heat_map_svg(numbers(), [WEIGHT, SHARE], "title").count("\u25b2") == 3
    assert "\u25b2" not in heat_map_svg(numbers(marks={}), [WEIGHT], "title")


def test_all_tokens_are_within_the_frame():
    texts = [f"word{number}" for number in range(300)]
    svg = heat_map_svg(numbers(texts=texts, values={"weight": [0.1] * 300}, marks={}), [WEIGHT], "title", ["about"])
    root = ElementTree.fromstring(svg)
    width, height = float(root.get("width")), float(root.get("height"))
    rectangles = [one for one in root.iter(f"{SVG}rect") if one.get("rx") == "3"]
    assert len(rectangles) == 300
    for one in rectangles:
        assert 0 <= float(one.get("x")) <= width - float(one.get("width")) - 10
        assert 0 <= float(one.get("y")) <= height - float(one.get("height")) - 4


@pytest.mark.parametrize("text", ["</text><script>", "\0\x1b", "&amp;", "\ud800"])
def test_any_text_makes_well_formed_xml(text):
    svg = heat_map_svg(numbers(texts=[text] * 4), [WEIGHT], text, [text])
    svg.encode()
    assert len(cells(svg)) == 4
    assert "<script" not in svg


def test_the_bound_is_the_99th_percentile_of_the_sizes():
    assert color_bound([0.001 * number for number in range(1, 1001)]) == pytest.approx(0.99)
    assert color_bound([-3.0, math.nan, math.inf]) == 3.0
    assert color_bound([0.0, 0.0]) == color_bound([]) == 1.0
    assert color_at(-7.0) == color_at(-1.0)


def test_a_long_prompt_is_wrapped_with_its_line_breaks_shown():
    prompt = "<|user|>\n" + "How many eggs does she sell? " * 20 + "\n\n\t<|assistant|>\r\n"
    root = ElementTree.fromstring(heat_map_svg(numbers(), [WEIGHT], prompt, ["about " * 60]))
    lines = [
        one for one in root.iter(f"{SVG}text") if one.get("font-size") in ("15", "12.5") and not one.get("textLength")
    ]
    texts = [one.text for one in lines]
    assert texts[0] == "<|user|>\u23ce"
    assert "\ufffd" not in "".join(texts)
    assert "\u23ce" in texts
    assert "\u21e5<|assistant|>\u240d\u23ce" in texts
    assert "".join(texts).count("How many eggs") == 20
    assert max(len(one.text) for one in lines if one.get("font-size") == "15") <= 72
    assert max(len(one.text) for one in lines if one.get("font-size") == "12.5") <= 125
    heights = [float(one.get("y")) for one in lines]
    assert heights == sorted(set(heights))
    assert heights[-1] < min(float(one.get("y")) for one in root.iter(f"{SVG}rect") if one.get("rx") == "3") - 30
    wide = ElementTree.fromstring(heat_map_svg(numbers(), [WEIGHT], "\u4e00" * 100))
    assert [len(one.text) for one in wide.iter(f"{SVG}text") if one.get("font-weight") == "600"][:3] == [36, 36, 28]


def test_a_token_that_is_longer_than_a_line_has_several_cells_of_its_color():
    svg = heat_map_svg(numbers(texts=["a", " " * 120, "\t", "b"], marks={}), [WEIGHT], "title")
    found = cells(svg)
    assert [len(text) for text, _, _ in found] == [1, 90, 30, 1, 1]
    assert found[1][1] == found[2][1]
    assert found[3][0] == "\u21e5"
    rectangles = [one for one in ElementTree.fromstring(svg).iter(f"{SVG}rect") if one.get("rx") == "3"]
    assert max(float(one.get("x")) + float(one.get("width")) for one in rectangles) <= 840


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        (Quantity("gate", "gate"), r"`quantities` has 'gate', of which .* pass some of \['share', 'weight'\]"),
        (Quantity("weight", "weight", scale="hidden"), r"`quantities` has 'weight', whose scale is 'hidden'; pass"),
        (
            Quantity("share", "clip", scale="sides"),
            r"scale is 'sides'; pass quantities of the scales diverging and share",
        ),
    ],
)
def test_a_quantity_without_colors_is_refused(quantity, message):
    with pytest.raises(ValueError, match=message):
        heat_map_svg(numbers(), [quantity], "title")
