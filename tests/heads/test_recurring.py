import torch

from bertvision_stream.heads.recurring import in_recurring_shapes


class Doubler:
    """Notes the sizes that it is given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x_T: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x_T))
        return x_T * 2


def test_whatever_is_cut_comes_out_whole_in_few_shapes():
    double = Doubler()
    for size in range(1, 2049):
        x = torch.arange(float(size))
        assert torch.equal(in_recurring_shapes(double, x), x * 2)
    assert len(set(double.sizes)) < 110  # 2,048 without


def test_gradients_add_up():
    x, weight = torch.randn(300, 4), torch.randn(4, 3, requires_grad=True)
    cut = torch.autograd.grad(in_recurring_shapes(lambda x: x @ weight, x).sum(), weight)
    whole = torch.autograd.grad((x @ weight).sum(), weight)
    torch.testing.assert_close(cut, whole)


def test_nothing_is_cut_without_training():
    double = Doubler()
    with torch.no_grad():
        in_recurring_shapes(double, torch.zeros(1001))
    assert double.sizes == [1001]
