"""Whatever a name, a log or a listing holds, it is shown and never run."""

import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpaas_lab.texttable import plain_table
from kpaas_lab.widgets import curve, markup

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; alert(1); '",
    "</pre></style><b>",
    "&lt;b&gt;",
]


class Elements(HTMLParser):
    """The elements, the attributes and the text that a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.names: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "part",
    [
        lambda text: markup.row(text, markup.pill(text, "good"), markup.soft(text)),
        lambda text: markup.table([text], [[text]]),
        lambda text: markup.code("Python", text),
        lambda text: markup.tag("a", text, href=text),
        markup.card,
        lambda text: curve.charts({text: [(0, 1.0), (1, 2.0)]}),
    ],
)
def test_hostile_text_makes_no_element(part, text: str) -> None:
    harmless = Elements(part("harmless"))
    seen = Elements(part(text))
    assert seen.names == harmless.names
    assert seen.attributes.keys() == harmless.attributes.keys()
    assert seen.attributes.get("onclick") == harmless.attributes.get("onclick")


@given(st.text(max_size=40))
def test_text_comes_back_whole(text: str) -> None:
    # HTML itself turns carriage returns into line feeds and has no place for NUL.
    clean = text.replace("\r", "").replace("\0", "")
    assert Elements(markup.tag("p", clean)).text == clean


def test_an_attribute_that_is_none_is_left_out() -> None:
    assert markup.tag("a", None, "x", href=None, class_="c") == '<a class="c">x</a>'


def test_columns_align_with_korean() -> None:
    lines = plain_table(["이름", "n"], [["숫자", 1], ["digits", 2]]).splitlines()
    assert lines == ["이름    n", "숫자    1", "digits  2"]


def test_a_metric_that_is_lost_is_said() -> None:
    shown = curve.chart("loss", [(0, 2.0), (1, 1.0), (2, math.nan), (3, math.inf)])
    assert "not a number since step 2" in shown
    assert "nan" not in shown.replace("not a number", "")
    assert "inf" not in shown


def test_a_metric_of_nothing_but_nan_has_a_frame() -> None:
    assert "not a number since step 0" in curve.chart("loss", [(0, math.nan)])


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(-1e12, 1e12, allow_nan=False)),
        min_size=1,
        max_size=60,
        unique_by=lambda point: point[0],
    )
)
def test_every_curve_stays_in_its_frame(points: list[tuple[int, float]]) -> None:
    shown = curve.chart("loss", sorted(points))
    [path] = Elements(shown).attributes["d"]
    places = [tuple(map(float, place.split())) for place in path.removeprefix("M").split("L")]
    assert all(0 <= x <= 360 and 0 <= y <= 190 for x, y in places)


def test_a_long_curve_is_thinned_and_keeps_its_spike_and_its_end() -> None:
    points = [(step, 1.0) for step in range(100_000)]
    points[54_321] = (54_321, 99.0)
    kept = curve.thin(points, 240)
    assert len(kept) <= 260
    assert (54_321, 99.0) in kept
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]


def test_strings_and_flags_are_no_curves() -> None:
    assert curve.series([{"step": 1, "loss": 1, "note": "x", "ok": True, "time": 3.0}]) == {"loss": [(1.0, 1.0)]}
