"""Products of rows: right, and the same bits wherever two rows stand, as blocks, workers and threads rely on."""

import pytest
import torch

from reid.products import row_products

SHAPES = [(64, 2048, 700), (64, 64, 2048), (50, 70, 333)]


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(num, dim, seed):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("num_left", "num_right", "dim"), SHAPES)
@pytest.mark.parametrize("has_onednn", [True, False])
def test_products_agree_with_float64(num_left, num_right, dim, has_onednn, monkeypatch):
    left, right = rows(num_left, dim, 1), rows(num_right, dim, 2)
    if not has_onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    actual = row_products(left, right)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), left.double() @ right.double().T, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("num_left", "num_right", "dim"), SHAPES)
def test_both_ways_to_onednn_give_the_same_bits(num_left, num_right, dim, monkeypatch):
    left, right = rows(num_left, dim, 1), rows(num_right, dim, 2)
    products = row_products(left, right)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert torch.equal(row_products(left, right), products)


def test_float64_is_computed_in_float64():
    left, right = rows(5, 40, 1).double(), rows(7, 40, 2).double()
    expected = torch.einsum("nd,md->nm", left, right)
    torch.testing.assert_close(row_products(left, right), expected, atol=1e-12, rtol=0)


def test_groups_are_multiplied_each_by_itself():
    left, right = rows(2 * 3 * 8, 40, 1).view(2, 3, 8, 40), rows(2 * 3 * 5, 40, 2).view(2, 3, 5, 40)
    actual = row_products(left, right)
    assert actual.shape == (2, 3, 8, 5)
    for group in range(3):
        assert torch.equal(actual[1, group], row_products(left[1, group], right[1, group]))


@pytest.mark.parametrize(("num_left", "num_right"), [(0, 3), (3, 0), (0, 0)])
def test_no_rows_give_no_products(num_left, num_right):
    assert row_products(torch.ones(num_left, 4), torch.ones(num_right, 4)).shape == (num_left, num_right)


@pytest.mark.parametrize(("num_left", "num_right", "dim"), SHAPES)
def test_the_bits_of_a_product_depend_on_its_two_rows_alone(num_left, num_right, dim):
    left, right = rows(num_left, dim, 1), rows(num_right, dim, 2)
    whole = row_products(left, right)
    generator = torch.Generator().manual_seed(3)
    top, side = torch.randperm(num_left, generator=generator), torch.randperm(num_right, generator=generator)
    assert torch.equal(row_products(left[top], right[side]), whole[top][:, side])
    alone = torch.zeros_like(left)
    alone[0] = left[0]
    assert torch.equal(row_products(alone, right)[0], whole[0])


@pytest.mark.parametrize(("num_left", "num_right", "dim"), SHAPES)
def test_threads_do_not_change_a_bit(num_left, num_right, dim, num_threads):
    left, right = rows(num_left, dim, 1), rows(num_right, dim, 2)
    torch.set_num_threads(1)
    expected = row_products(left, right)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(row_products(left, right), expected)


def test_a_square_of_rows_is_symmetric_to_the_bit():
    features = rows(512, 300, 1)
    products = row_products(features, features)
    assert torch.equal(products, products.T)


def test_strides_and_gradients_do_not_matter():
    left, right = rows(40, 6, 1).T, rows(9, 80, 2)[:, ::2].requires_grad_()
    actual = row_products(left, right)
    assert not actual.requires_grad
    torch.testing.assert_close(actual.double(), left.double() @ right.detach().double().T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("has_onednn", [True, False])
def test_autocast_and_inference_mode_change_nothing(has_onednn, monkeypatch):
    if not has_onednn:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    left, right = rows(40, 80, 1), rows(9, 80, 2)
    expected = row_products(left, right)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        actual = row_products(left, right)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
