"""The rules of GenEval on made-up detections; verdicts and reasons were worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mobileo_mlx.evals.detections import Detection
from mobileo_mlx.evals.geneval_rules import COLOURS, MAX_OBJECTS, RELATIONS, Verdict, judge, keep, relations


def thing(
    name: str, score: float = 0.95, box: tuple[float, float, float, float] = (0.0, 0.0, 10.0, 10.0), colour: str = "red"
) -> Detection:
    """A detection; its colour is told by the fake classifier from the mask, of all places."""
    return Detection(name, box, score, np.full((1, 1), COLOURS.index(colour)))


def at(name: str, x: float, y: float, side: float = 10.0, **more: Any) -> Detection:
    """A square around (x, y)."""
    return thing(name, box=(x - side / 2, y - side / 2, x + side / 2, y + side / 2), **more)


def colours(found: Sequence[Detection]) -> list[str]:
    assert len({one.name for one in found}) == 1
    return [COLOURS[int(one.mask[0, 0])] for one in found if one.mask is not None]


def verdict(tag: str, found: Sequence[Detection], include: list[Any], exclude: Sequence[Any] = ()) -> Verdict:
    metadata = {"tag": tag, "prompt": "x", "include": include, "exclude": list(exclude)}
    return judge(metadata, keep(found, tag), colours)


def want(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


RIGHT = Verdict(True, "")


# Which objects count


@pytest.mark.parametrize(
    ("tag", "score", "counts"),
    [
        *[("single_object", score, counts) for score, counts in ((0.29, False), (0.3, False), (0.301, True))],
        *[("counting", score, counts) for score, counts in ((0.301, False), (0.9, False), (0.901, True))],
        ("colors", float(np.float32(0.3)), False),  # a little more than 0.3, in float64
    ],
)
def test_only_what_is_above_the_threshold_counts(tag: str, score: float, counts: bool) -> None:
    assert ("dog" in keep([thing("dog", score)], tag)) is counts


def test_the_surest_come_first_and_of_equal_ones_the_later() -> None:
    found = [thing("dog", 0.5), thing("cat", 0.6), thing("dog", 0.8), thing("dog", 0.5, colour="blue")]
    kept = keep(found, "colors")
    assert {name: [found.index(one) for one in some] for name, some in kept.items()} == {"dog": [2, 3, 0], "cat": [1]}


def test_of_a_class_only_the_sixteen_surest_count() -> None:
    found = [thing("dog", 0.91 + i / 1000) for i in range(MAX_OBJECTS + 2)]
    kept = keep([*found, thing("cat")], "counting")
    assert kept["dog"] == found[:1:-1]
    assert len(kept["cat"]) == 1


def test_boxes_that_cover_each_other_are_all_kept() -> None:
    assert len(keep([thing("dog", 0.9), thing("dog", 0.8)], "two_object")["dog"]) == 2


# Presence and counts


def test_one_object() -> None:
    assert verdict("single_object", [thing("bench")], [want("bench")]) == RIGHT
    assert verdict("single_object", [], [want("bench")]) == Verdict(False, "expected bench>=1, found 0")
    assert verdict("single_object", [thing("dog")], [want("bench")]).reason == "expected bench>=1, found 0"


def test_more_than_asked_for_is_no_fault_unless_excluded() -> None:
    found = [thing("bench"), thing("bench"), thing("dog")]
    assert verdict("single_object", found, [want("bench")]) == RIGHT
    limited = verdict("counting", found, [want("bench")], [want("bench", 2)])
    assert limited == Verdict(False, "expected bench<2, found 2")


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        (0, "expected clock>=2, found 0"),
        (1, "expected clock>=2, found 1"),
        (2, ""),
        (3, "expected clock<3, found 3"),
        (20, "expected clock<3, found 16"),  # as no more count
    ],
)
def test_counts_are_exact(count: int, reason: str) -> None:
    found = verdict("counting", [thing("clock")] * count, [want("clock", 2)], [want("clock", 3)])
    assert found == Verdict(not reason, reason)


def test_counting_asks_for_sure_objects() -> None:
    found = [thing("clock", 0.95), thing("clock", 0.89)]
    assert verdict("counting", found, [want("clock", 2)]).reason == "expected clock>=2, found 1"
    assert verdict("two_object", found, [want("clock", 2)]) == RIGHT


def test_two_objects_and_all_that_is_missing_is_said() -> None:
    include = [want("bench"), want("sports ball")]
    assert verdict("two_object", [thing("sports ball"), thing("bench")], include) == RIGHT
    assert verdict("two_object", [thing("bench")], include).reason == "expected sports ball>=1, found 0"
    both = verdict("two_object", [], include, [want("cat")])
    assert both == Verdict(False, "expected bench>=1, found 0\nexpected sports ball>=1, found 0")
    excluded = verdict("two_object", [thing("cat")], include, [want("cat")])
    assert excluded.reason.splitlines()[2:] == ["expected cat<1, found 1"]


def test_one_object_serves_two_entries() -> None:
    assert verdict("two_object", [thing("dog")], [want("dog"), want("dog")]) == RIGHT


def test_a_class_that_no_detector_knows_is_never_found() -> None:
    assert verdict("single_object", [thing("dog")], [want("unicorn")]).reason == "expected unicorn>=1, found 0"
    assert verdict("single_object", [thing("dog")], [want("dog")], [want("unicorn")]) == RIGHT


def test_nothing_asked_for_is_right() -> None:
    assert verdict("single_object", [], []) == RIGHT


# Colours


def test_colour() -> None:
    include = [want("bus", color="blue")]
    assert verdict("colors", [thing("bus", colour="blue")], include) == RIGHT
    wrong = verdict("colors", [thing("bus", colour="pink")], include)
    assert wrong == Verdict(False, "expected blue bus>=1, found 0 blue; and 1 pink")


def test_only_the_surest_has_its_colour_looked_at() -> None:
    found = [thing("bus", 0.5, colour="blue"), thing("bus", 0.6, colour="red")]
    assert verdict("colors", found, [want("bus", color="blue")]).reason == (
        "expected blue bus>=1, found 0 blue; and 1 red"
    )
    assert verdict("colors", found[::-1], [want("bus", color="red")]) == RIGHT


def test_all_of_a_count_need_the_colour() -> None:
    found = [thing("bus", 0.9 - i / 100, colour=colour) for i, colour in enumerate(("white", "red", "red", "green"))]
    mixed = verdict("colors", found, [want("bus", 4, color="red")])
    assert mixed.reason == "expected red bus>=4, found 2 red; and 2 red, 1 green, 1 white"  # in the order of COLOURS
    assert verdict("colors", found, [want("bus", 2, color="red")]).correct is False  # the two surest: white and red


def test_colours_of_two_objects() -> None:
    include = [want("wine glass", color="purple"), want("apple", color="black")]
    right = [thing("wine glass", colour="purple"), thing("apple", colour="black")]
    swapped = [thing("wine glass", colour="black"), thing("apple", colour="purple")]
    assert verdict("color_attr", right, include) == RIGHT
    assert verdict("color_attr", swapped, include).reason.splitlines() == [
        "expected purple wine glass>=1, found 0 purple; and 1 black",
        "expected black apple>=1, found 0 black; and 1 purple",
    ]


def test_colours_are_asked_for_only_where_there_are_enough_objects() -> None:
    def never(found: Sequence[Detection]) -> list[str]:
        raise AssertionError

    metadata = {"tag": "colors", "prompt": "x", "include": [want("bus", 2, color="blue")]}
    assert judge(metadata, keep([thing("bus")], "colors"), never).reason == "expected bus>=2, found 1"
    assert judge({**metadata, "include": [want("bus")]}, keep([thing("bus")], "colors"), never) == RIGHT


# Positions


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        # Squares of side 10: 0.1 * (10 + 10) = 2 pixels of each axis do not count.
        (-100, 0, ["left of"]),
        (100, 0, ["right of"]),
        (0, -100, ["above"]),
        (0, 100, ["below"]),
        (0, 0, []),  # the same centre
        (2, 0, []),  # no more than what does not count
        (2, -2, []),
        (3, 0, []),  # 1 of 3 is left: less than a half
        (4, 0, []),  # 2 of 4: a half, and no more
        (4.1, 0, ["right of"]),
        (100, 100, ["right of", "below"]),  # 98 of 141.4: 0.69 along each axis
        (-100, 100, ["left of", "below"]),
        (100, -52, ["right of"]),  # 50 of 112.7: 0.44
        (100, -62, ["right of", "above"]),  # 60 of 117.7: 0.51
        (6, 6, []),  # 4 of 8.5: 0.47 along each axis, which is in no direction
    ],
)
def test_relations(x: float, y: float, expected: list[str]) -> None:
    assert relations(at("dog", x, y), at("cat", 0, 0)) == expected
    opposite = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
    assert set(relations(at("cat", 0, 0), at("dog", x, y))) == {opposite[relation] for relation in expected}


def test_large_objects_must_be_farther_apart() -> None:
    assert relations(at("dog", 100, 0, side=10), at("cat", 0, 0, side=10)) == ["right of"]
    # 0.1 * (500 + 500) = 100
    assert relations(at("dog", 100, 0, side=500), at("cat", 0, 0, side=500)) == []
    assert relations(at("dog", 201, 0, side=500), at("cat", 0, 0, side=500)) == ["right of"]


def test_only_the_size_along_an_axis_counts_there() -> None:
    tall = thing("cat", box=(-5, -500, 5, 500))
    assert relations(at("dog", 10, 0), tall) == ["right of"]
    assert relations(at("dog", 0, 100), tall) == []


def test_overlapping_boxes_have_positions_too() -> None:
    assert relations(thing("dog", box=(0, 0, 100, 100)), thing("cat", box=(60, 0, 160, 100))) == ["left of"]


def test_a_box_inside_of_another_one_with_the_same_centre_is_nowhere() -> None:
    assert relations(at("dog", 50, 50, side=10), at("cat", 50, 50, side=90)) == []


POSITION = [want("teddy bear"), want("dog", position=["right of", 0])]


def test_position() -> None:
    bear = at("teddy bear", 0, 0)
    assert verdict("position", [bear, at("dog", 100, 0)], POSITION) == RIGHT
    wrong = verdict("position", [bear, at("dog", 0, -100)], POSITION)
    assert wrong == Verdict(False, "expected dog right of target, found above target")
    both = verdict("position", [bear, at("dog", -100, 100)], POSITION)
    assert both.reason == "expected dog right of target, found left of and below target"
    nowhere = verdict("position", [bear, at("dog", 0, 0)], POSITION)
    assert nowhere.reason == "expected dog right of target, found  target"


def test_no_target() -> None:
    assert verdict("position", [at("dog", 100, 0)], POSITION).reason == (
        "expected teddy bear>=1, found 0\nno target for dog to be right of"
    )
    neither = "expected teddy bear>=1, found 0\nexpected dog>=1, found 0"
    assert verdict("position", [], POSITION).reason == neither


def test_a_target_of_the_wrong_colour_is_none() -> None:
    include = [want("teddy bear", color="red"), want("dog", position=["right of", 0])]
    found = [at("teddy bear", 0, 0, colour="blue"), at("dog", 100, 0)]
    assert verdict("position", found, include).reason.endswith("no target for dog to be right of")


def test_an_object_of_the_wrong_colour_has_no_position() -> None:
    include = [want("teddy bear"), want("dog", color="red", position=["right of", 0])]
    found = [at("teddy bear", 0, 0), at("dog", -100, 0, colour="blue")]
    assert verdict("position", found, include).reason == "expected red dog>=1, found 0 red; and 1 blue"


def test_only_the_surest_has_its_position_looked_at() -> None:
    found = [at("teddy bear", 0, 0), at("dog", 100, 0, score=0.5), at("dog", -100, 0, score=0.6)]
    assert verdict("position", found, POSITION).reason == "expected dog right of target, found left of target"
    assert verdict("position", [found[0], found[1]], POSITION) == RIGHT


def test_all_of_a_count_must_be_there_and_one_reason_is_given() -> None:
    include = [want("teddy bear", 2), want("dog", 2, position=["right of", 0])]
    bears = [at("teddy bear", 0, 0), at("teddy bear", 0, 50)]
    assert verdict("position", [*bears, at("dog", 300, 0), at("dog", 300, 50)], include) == RIGHT
    wrong = verdict("position", [*bears, at("dog", -300, 0), at("dog", -300, 50)], include)
    assert wrong.reason == "expected dog right of target, found left of target"
    one = verdict("position", [*bears, at("dog", 300, 0, score=0.99), at("dog", 0, 300)], include)
    assert one.reason == "expected dog right of target, found below target"


def test_a_target_may_be_any_earlier_entry() -> None:
    include = [want("cat"), want("bus"), want("dog", position=["above", 1]), want("cup", position=["left of", 2])]
    found = [at("cat", 0, 0), at("bus", 500, 500), at("dog", 500, 0), at("cup", 0, 0)]
    assert verdict("position", found, include) == RIGHT
