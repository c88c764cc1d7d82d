"""Suggests a recipe and settings for a set of pictures, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass

from tinyssl.survey import Survey

_FEW = 500  # pictures, below which training from random weights learns next to nothing
_SMALL = 72  # pixels: networks for 224 leave nothing of such pictures
_LONG = 1.5  # long side over short side


@dataclass(frozen=True)
class Advice:
    """A recipe, settings on top of it, and why.

    Attributes:
        recipe: name of a bundled recipe.
        settings: `section.key=value`.
        reasons: one line each.
    """

    recipe: str
    settings: list[str]
    reasons: list[str]

    def command(self, data: str) -> str:
        """The command line that follows the advice."""
        return " ".join(["tinyssl pretrain", data, "--recipe", self.recipe, *self.settings])


def advise(found: Survey, pictures: int, gray: bool) -> Advice:
    """Suggests a recipe.

    Args:
        found: survey of the files' headers.
        pictures: number of readable, distinct pictures.
        gray: whether the decoded pictures have one channel.
    """
    sides = found.short_sides()
    middle = sides[len(sides) // 2] if sides else 0
    channels = found.channels.most_common(1)[0][0] if found.channels else 3
    recipe, reasons = _recipe(found, pictures, middle, channels)
    if pictures < _FEW and recipe != "adapt":
        reasons.append(f"{pictures:,} pictures are few for random weights; collect some 2,000")
    settings = []
    if channels in (2, 4):
        settings.append(f"data.channels={channels}")
        reasons.append(f"data.channels: most files have {channels} channels")
    if 0 < 2 * found.deep <= found.files:
        has = "has" if found.deep == 1 else "have"
        reasons.append(
            f"16 bits: {found.deep:,} of {found.files:,} files {has} them, so the encoder takes 16 "
            "of all; save those with 8 if it shall not"
        )
    if gray:
        settings.append("augment.preset=industrial")
        reasons.append("augment.preset: gray pictures have no hue to vary; look at --augment")
    long = found.long_pictures(_LONG)
    if 4 * long > found.files:
        settings.append("data.resize=pad")
        reasons.append(
            f"data.resize: {long:,} pictures are longer than {_LONG} times their width or height, "
            "and crop would cut their ends off"
        )
    return Advice(recipe, settings, reasons)


def _recipe(found: Survey, pictures: int, middle: int, channels: int) -> tuple[str, list[str]]:
    if channels in (2, 4) or 2 * found.deep > found.files:
        kind = f"{channels} channels" if channels in (2, 4) else "16 bits a channel"
        reason = f"random weights: ImageNet does not cover {kind}"
        return ("resnet18-small" if middle <= _SMALL else "mobilenetv3-small"), [reason]
    if middle <= _SMALL:
        return "resnet18-small", [f"half the pictures have {middle} pixels or less a side"]
    reason = "ImageNet weights, where they may be used, are ahead of training from scratch"
    few = f"; {pictures:,} pictures are few to start from random weights" * (pictures < _FEW)
    return "adapt", [reason + few + " (without them: mobilenetv3-small)"]
