"""tinyssl: pretrain a small image encoder on your own pictures, judge it, ship it."""

__version__ = "0.1.0"
