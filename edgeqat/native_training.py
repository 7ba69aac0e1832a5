"""What training computes in the C++ library, on the threads of torch; arrays are addresses of
float32.
"""

from __future__ import annotations

from edgeqat import native


def lsq(
    threads: int, values: int, scale: int, beta: float, shape: tuple[int, int], scale_rows: int,
    group: int, bits: int, out: int,
) -> None:  # fmt: skip
    """Learned-scale fake quantization, see edgeqat.h; the arrays are addresses."""
    where = values, scale, beta, *shape, scale_rows, group, bits, out
    native.check(native.require().edgeqat_lsq(native.team(threads), *where))


def mse_scale(
    threads: int, values: int, importance: int | None, shape: tuple[int, int], group: int,
    bits: int, signed: bool, scale: int,
) -> None:  # fmt: skip
    """Scales of least squared error, see edgeqat.h; the arrays are addresses."""
    where = values, importance, *shape, group, bits, signed, scale
    native.check(native.require().edgeqat_mse_scale(native.team(threads), *where))


def lsq_backward(
    threads: int, values: int, scale: int, beta: float, grad: int, shape: tuple[int, int],
    scale_rows: int, group: int, bits: int, grad_values: int, slopes: int,
) -> None:  # fmt: skip
    """Gradients of `lsq`, see edgeqat.h; the arrays are addresses."""
    where = values, scale, beta, grad, *shape, scale_rows, group, bits, grad_values, slopes
    native.check(native.require().edgeqat_lsq_backward(native.team(threads), *where))


def fake_quantize(
    threads: int, values: int, shape: tuple[int, int], bits: int, clip: float | None,
    half_scale: bool, out: int, clipped: int | None,
) -> None:  # fmt: skip
    """Fake quantization with one scale a row, see edgeqat.h; clip None: the scale is searched. The
    arrays are addresses.
    """
    searched = clip is None, 0.0 if clip is None else clip
    where = values, *shape, bits, *searched, half_scale, out, clipped
    native.check(native.require().edgeqat_fake_quantize(native.team(threads), *where))


def batch_norm(
    threads: int, x: int, shape: tuple[int, int], affine: tuple[int, int],
    numbers: tuple[float, float, float], moments: tuple[int, int], out: int,
) -> None:  # fmt: skip
    """Batch norm and clamp, see edgeqat.h: affine are gain and bias, numbers epsilon and the ends,
    moments where mean and variance go; the arrays are addresses.
    """
    where = x, *shape, *affine, *numbers, *moments, out
    native.check(native.require().edgeqat_batch_norm(native.team(threads), *where))


def batch_norm_backward(
    threads: int, x: int, grad: int, shape: tuple[int, int], affine: tuple[int, int],
    numbers: tuple[float, float, float], moments: tuple[int, int], grads: tuple[int, int, int],
) -> None:  # fmt: skip
    """Gradients of `batch_norm`: of x, gain and bias, see edgeqat.h; the arrays are addresses."""
    where = x, grad, *shape, *affine, *numbers, *moments, *grads
    native.check(native.require().edgeqat_batch_norm_backward(native.team(threads), *where))
