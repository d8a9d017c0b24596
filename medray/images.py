"""Images in and out: bytes in, arrays out."""

from __future__ import annotations

from medray.images_png import decode_png, encode_png

__all__ = ["decode_png", "encode_png"]
