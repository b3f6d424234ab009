"""Rank lists, planes, masks and curves: what is drawn where."""

from __future__ import annotations

from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from reid.visual.curves import draw_curves
from reid.visual.masks import PART_COLOURS, MaskedImage, draw_boxes, draw_mask, masks_picture
from reid.visual.mosaic import BLUE, GREEN, GREY, PAPER, RED, column, encode_jpeg, fit_tile, row, save_picture
from reid.visual.planes import PLANE_COLOURS, draw_keypoints, draw_planes, planes_picture
from reid.visual.rank_lists import rank_list_picture, rank_lists_sheet


def image(height=40, width=60, value=120):
    return np.full((height, width, 3), value, np.uint8)


def share_of(picture, colour):
    return (picture == np.array(colour, np.uint8)).all(axis=2).mean()


def test_a_tile_keeps_the_proportions_and_centres_the_image():
    tile = fit_tile(image(20, 40, 200), 80)
    assert tile.shape == (80, 80, 3)
    assert (tile[20:60] == 200).all()
    assert (tile[:20] == PAPER).all()


def test_frames_tell_right_from_wrong():
    gallery = [image(), image(50, 30), image()]
    picture = rank_list_picture(image(), gallery, [True, False, True], tile_size=100)
    right, wrong = share_of(picture, GREEN), share_of(picture, RED)
    assert right == pytest.approx(2 * wrong, rel=0.1)
    assert share_of(picture, BLUE) > 0


def test_a_short_gallery_leaves_empty_places():
    full = rank_list_picture(image(), [image()] * 5, [False] * 5)
    short = rank_list_picture(image(), [image()] * 2, [False] * 2, length=5)
    assert short.shape == full.shape
    assert share_of(short, GREY) > 0


def test_an_empty_gallery_still_draws():
    assert rank_list_picture(image(), [], [], length=3).shape[2] == 3


def test_marks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="each of 2 gallery images, got 1 marks"):
        rank_list_picture(image(), [image()] * 2, [True])


def test_a_sheet_stacks_strips_of_different_widths():
    strips = [rank_list_picture(image(), [image()] * n, [True] * n) for n in (2, 4)]
    sheet = rank_lists_sheet([("easiest", strips[0]), ("hardest", strips[1])])
    assert sheet.shape[1] == strips[1].shape[1]
    assert sheet.shape[0] > strips[0].shape[0] + strips[1].shape[0]


def test_planes_are_filled_in_their_own_colour_where_they_are():
    corners = np.zeros((4, 4, 2))
    corners[0] = [(5, 5), (25, 5), (25, 35), (5, 35)]
    corners[3] = [(35, 5), (55, 5), (55, 35), (35, 35)]
    visible = np.array([True, False, False, True])
    drawn = draw_planes(image(value=0), corners, visible)
    front, top = (np.array(PLANE_COLOURS[name], float) for name in ("front", "top"))
    np.testing.assert_allclose(drawn[20, 15], 0.35 * front, atol=2)
    np.testing.assert_allclose(drawn[20, 45], 0.35 * top, atol=2)
    assert (drawn[20, 30] == 0).all()


def test_invisible_planes_and_points_leave_the_image_as_it_is():
    keypoints = np.zeros((20, 3), np.float32)
    drawn = draw_planes(image(), np.full((4, 4, 2), 10.0), np.zeros(4, bool), keypoints)
    assert np.array_equal(drawn, image())


def test_points_sit_where_they_are_also_when_the_image_is_enlarged():
    keypoints = np.zeros((20, 3), np.float32)
    keypoints[4] = (30, 10, 1)
    plain = draw_keypoints(image(), keypoints)
    large = draw_keypoints(image(), keypoints, tile_size=240)
    assert tuple(plain[10, 30]) == (255, 221, 51)
    assert large.shape == (160, 240, 3)
    assert tuple(large[42, 122]) == (255, 221, 51)
    assert np.array_equal(image(), image())


def test_drawing_does_not_change_the_image():
    original = image()
    keypoints = np.ones((20, 3), np.float32)
    draw_planes(original, np.full((4, 4, 2), 10.0), np.ones(4, bool), keypoints)
    draw_keypoints(original, keypoints)
    draw_mask(original, np.ones((40, 60), np.uint8))
    assert (original == 120).all()


def test_the_background_of_a_mask_is_darkened():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:50] = 1
    drawn = draw_mask(image(), mask)
    assert tuple(drawn[20, 30]) == (120, 120, 120)
    assert tuple(drawn[2, 2]) == (42, 42, 42)


def test_part_boxes_are_drawn_where_their_shares_say():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32)
    drawn = draw_boxes(image(), boxes)
    for corner, colour in zip([(0, 0), (19, 29), (20, 30), (39, 59)], np.repeat(PART_COLOURS[:2], 2, 0), strict=True):
        assert tuple(drawn[corner]) == tuple(colour)
    assert tuple(drawn[10, 10]) == (120, 120, 120)
    assert tuple(drawn[30, 10]) == (120, 120, 120)


def test_a_mosaic_of_masks_frames_the_fallbacks():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:50] = 1
    plain = MaskedImage(image=image(), mask=mask, boxes=np.array([[0, 0, 0.5, 0.5]], np.float32), caption="a")
    flagged = MaskedImage(image=image(90, 30), mask=None, flagged=True)
    picture = masks_picture([plain] * 7 + [flagged], columns=4, tile_size=100)
    assert picture.shape == (2 * (100 + 6 + 22) + 6 + 12, 4 * 106 + 3 * 6 + 12, 3)
    assert share_of(picture, RED) > 0
    assert share_of(masks_picture([plain] * 8, columns=4, tile_size=100), RED) == 0


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: draw_planes(image(), np.zeros((3, 4, 2)), np.zeros(4, bool)), r"got \(3, 4, 2\)"),
        (lambda: draw_keypoints(image(), np.ones((19, 3))), r"keypoints \(20, 3\), got \(19, 3\)"),
        (lambda: draw_mask(image(), np.ones((4, 4), np.uint8)), r"size \(40, 60\), got \(4, 4\)"),
        (lambda: fit_tile(np.zeros((4, 4), np.uint8), 8), r"\(H, W, 3\) and type uint8, got \(4, 4\)"),
        (lambda: draw_boxes(image(), np.ones((2, 5))), r"boxes of shape \(K, 4\), got \(2, 5\)"),
        (lambda: masks_picture([]), "at least one image with a mask"),
        (lambda: planes_picture([]), "at least one image"),
        (lambda: rank_lists_sheet([]), "at least one rank list"),
    ],
)
def test_wrong_shapes_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_rows_and_columns_align_pictures_of_different_sizes():
    pictures = [image(10, 20), image(30, 40)]
    assert row(pictures, gap=2).shape == (30, 62, 3)
    assert column(pictures, gap=2).shape == (42, 40, 3)
    assert planes_picture([("a", image()), ("b", image())]).shape[2] == 3


def test_pictures_are_saved_in_the_right_colours(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    save_picture(red, tmp_path / "red.png")
    assert np.array_equal(cv2.imread(str(tmp_path / "red.png"))[..., ::-1], red)
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(red), np.uint8), cv2.IMREAD_COLOR)
    assert abs(int(decoded[8, 8, 2]) - 250) < 6
    with pytest.raises(ValueError, match=r"\.jpg or \.png, got 'red\.gif'"):
        save_picture(red, tmp_path / "red.gif")


def test_curves_are_svg_with_their_names_and_the_same_bytes_each_time():
    curves = {"loss": [(0, 2.0), (1, 1.0)], "triplet": [(0, 0.5), (1, 0.2)], "empty": []}
    svg = draw_curves(curves, x_label="epoch", y_label="loss", title="Loss")
    assert svg == draw_curves(curves, x_label="epoch", y_label="loss", title="Loss")
    text = "".join(ElementTree.fromstring(svg).itertext())
    assert "triplet" in text
    assert "epoch" in text


def test_curves_as_png_are_on_white_and_share_colours_in_pairs():
    curves = {f"{run} {figure}": [(0, 80.0), (5, 40.0 + number)] for number, run in enumerate("ab") for figure in "xy"}
    options = {"x_label": "share", "y_label": "%", "from_zero": True, "num_per_colour": 2}
    png = draw_curves(curves, **options, picture_format="png")
    assert png == draw_curves(curves, **options, picture_format="png")
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert (picture[0] == 255).all()
    svg = draw_curves(curves, **options).decode()
    assert svg.count("stroke: #2484de") == svg.count("stroke: #e06c24") > 0
    assert "stroke: #24a860" not in svg
    assert "stroke-dasharray" in svg


def test_curves_without_points_are_refused():
    with pytest.raises(ValueError, match="at least one point to draw for 'mAP'"):
        draw_curves({"mAP": []}, x_label="epoch", y_label="mAP")
