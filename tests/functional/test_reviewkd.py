import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kd_plugins.functional import reviewkd_loss


def mean_of(values, rows, columns):
    cells = [values[i][j] for i in rows for j in columns]
    return sum(cells) / len(cells)


def by_loops(student, teacher):
    """Pool the difference of one channel of an image at a time, by cells from floor(i n / k) to ceil((i + 1) n / k)."""
    height, width = student.shape[2:]
    sums = {}
    for values in (student - teacher).flatten(0, 1).tolist():
        sums.setdefault(0, []).extend(x * x for row in values for x in row)
        for side in (4, 2, 1):
            if side < min(height, width):
                rows, columns = (
                    [range(i * n // side, -(-(i + 1) * n // side)) for i in range(side)] for n in (height, width)
                )
                sums.setdefault(side, []).extend(mean_of(values, a, b) ** 2 for a in rows for b in columns)
    means = [sum(squares) / len(squares) for squares in sums.values()]
    weights = [0.5**i for i in range(len(means))]
    return sum(w * mean for w, mean in zip(weights, means, strict=True)) / sum(weights)


@pytest.mark.parametrize('size', [(8, 8), (5, 7), (4, 6), (2, 9), (1, 1)])
def test_value(size):
    student, teacher = torch.randn(3, 2, *size, dtype=torch.float64), torch.randn(3, 2, *size, dtype=torch.float64)
    assert reviewkd_loss(student, teacher).item() == pytest.approx(by_loops(student, teacher))


@pytest.mark.parametrize('size', [(8, 8), (3, 5), (1, 1)])
def test_gradcheck(size):
    student = torch.randn(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 2, *size, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: reviewkd_loss(s, teacher), (student,))


def test_limits():
    student = torch.randn(2, 3, 8, 8)
    assert reviewkd_loss(student, student) == 0
    torch.testing.assert_close(reviewkd_loss(student + 1e4, student), torch.tensor(1e8), rtol=1e-5, atol=0)
    # Without a part in the pooled maps, the mean square has 8/15 of the weight.
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    torch.testing.assert_close(reviewkd_loss(board.expand(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)), torch.tensor(8 / 15))


def test_larger_maps_are_pooled():
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 6)
    expected = reviewkd_loss(adaptive_avg_pool2d(student, (4, 4)), adaptive_avg_pool2d(teacher, (4, 4)))
    torch.testing.assert_close(reviewkd_loss(student, teacher), expected)


@pytest.mark.parametrize(
    ('student', 'teacher', 'say'),
    [
        ((2, 3, 4, 4), (2, 5, 4, 4), "add adapter='auto' to the term"),
        ((2, 3), (2, 3), 'expected feature maps (B, C, H, W)'),
        ((2, 3, 4, 4), (1, 3, 4, 4), 'same images'),
    ],
)
def test_mismatch(student, teacher, say):
    with pytest.raises(ValueError) as error:
        reviewkd_loss(torch.ones(student), torch.ones(teacher))
    assert say in str(error.value)
