"""Shapes and types in signatures: jaxtyping's, which the tests check; without jaxtyping, a tensor of any shape."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64, Int64, Integer, Num, Shaped, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Float64, Int64, Integer, Num, Shaped, UInt8
    except ImportError:

        class _Unchecked:
            """`Float[Tensor, "B H W"]` is Tensor."""

            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Float64 = Int64 = Integer = Num = Shaped = UInt8 = _Unchecked

__all__ = ["Bool", "Float", "Float64", "Int64", "Integer", "Num", "Shaped", "UInt8"]
