"""Matrices drawn as pictures. That they are valid, whole and free of collisions is checked in test_figures.py."""

import numpy as np

from headdyn.core.chart_parts import CIVIDIS, PUOR
from headdyn.core.figures import Figure
from headdyn.core.pictures import Tree, data_uri, lift_grid, mixed, pattern_grid, similarity_grid, tree_grid
from tests.figure_checks import decoded, rows, texts

PATTERN_RCQK = np.tril(np.ones((2, 3, 20, 20))) / np.arange(1, 21)[:, None]


def a_pattern_grid() -> Figure:
    return pattern_grid(
        PATTERN_RCQK, rows=["layer 0", "layer 1"], columns=["a", "b", "c"], boundaries=[(0, 8, 13), (5,)], title="one"
    )


def a_tree_grid() -> Figure:
    cosine_NN = np.array([[1, 0.5, 0.1], [0.5, 1, 0.2], [0.1, 0.2, 1]])
    place_J4, height_J4 = np.array([[0, 0, 1, 1], [0.5, 0.5, 2, 2]]), np.array([[0, 0.5, 0.5, 0], [0.5, 0.85, 0.85, 0]])
    tree = Tree(
        title="QK",
        labels=["0.1", "1.2", "0.0"],
        cosine_NN=cosine_NN,
        place_J4=place_J4,
        height_J4=height_J4,
        chance=0.7,
    )
    return tree_grid([tree, tree], reach=0.5, title="Heads")


PICTURES = {
    "pattern_grid": a_pattern_grid,
    "lift_grid": lambda: lift_grid(8 * PATTERN_RCQK[0], columns=["a", "b", "c"], boundaries=(8,)),
    "similarity_grid": lambda: similarity_grid(
        np.stack([np.eye(8)] * 2), columns=["QK", "OV"], reach=0.1, boundaries=(4,)
    ),
    "tree_grid": a_tree_grid,
}


def test_a_picture_holds_every_number_of_its_matrix():
    value_YX = np.array([[0.0, 0.25], [1.0, np.nan]])
    index_YX = decoded(data_uri(value_YX, CIVIDIS, (0, 1)))
    assert index_YX.shape == (512, 512)
    assert index_YX[[0, 0, 511, 511], [0, 511, 0, 511]].tolist() == [0, 64, 254, 255]  # 255 is transparent
    assert decoded(data_uri(np.array([[-9.0, 9.0]]), PUOR, (-3, 3)))[0, [0, -1]].tolist() == [0, 254]
    assert (mixed(CIVIDIS, 0), mixed(CIVIDIS, 1), mixed(["#000000", "#ffffff"], 0.5)) == (*CIVIDIS[::8], "#808080")


def test_patterns_are_drawn_by_their_roots_with_a_boundary_before_its_token():
    figure = a_pattern_grid()
    images = rows(figure, "url")
    index_QK = decoded(images[0]["url"])[::25, ::25][:20, :20]
    np.testing.assert_array_equal(index_QK[np.triu_indices(20, 1)], 255)  # keys after the query are empty
    np.testing.assert_allclose(index_QK[19, :20] / 254, np.sqrt(1 / 20), atol=1 / 254)
    edges = [(row["row"], row["edge"]) for row in rows(figure, "edge") if row["column"] == "a"]
    assert edges == [("layer 0", 7.5), ("layer 0", 12.5), ("layer 1", 4.5)]  # the segment at 0 needs no line


def test_similarity_leaves_the_diagonal_out_and_reaches_as_far_as_asked():
    figure = similarity_grid(np.array([[[1.0, 0.03], [0.03, 1.0]]]), columns=["QK"], reach=0.06)
    index_NN = decoded(rows(figure, "url")[0]["url"])[[0, 0, 511], [0, 511, 0]]
    assert index_NN.tolist() == [255, round(254 * 0.75), round(254 * 0.75)]
    words = [text.text for text in texts(figure)]
    assert "cosine (colours reach" in words and words.count("head, numbered through the layers") == 2


def test_a_tree_stands_over_its_matrix_with_the_height_of_chance():
    figure = a_tree_grid()
    corners = [row for row in rows(figure, "corner") if row["join"] == 1]
    assert [row["height"] for row in corners] == [0.5, 0.85, 0.85, 0]
    assert [row["height"] for row in rows(figure, "height") if "join" not in row] == [0.7]
    assert [text.text for text in texts(figure)].count("1.2") == 4  # on both axes of both matrices
