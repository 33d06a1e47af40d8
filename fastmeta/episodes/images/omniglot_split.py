"""Published splits of the 1,623 Omniglot characters."""

from __future__ import annotations

from fastmeta.episodes.images.classes import ImageClasses, ImageSplits
from fastmeta.episodes.images.splits import ClassSplit
from fastmeta.words import one_of

CHARACTERS = 1623
# In the original order these come first: the background set, and what Vinyals et al. learn from.
BACKGROUND = 964
VINYALS_TRAIN_AND_VALIDATION = 1200
VALIDATION_ALPHABETS = {
    "Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"
}  # fmt: skip
SPLITS = ("vinyals", "first-1200", "background")


def split_omniglot(characters: ImageClasses, split: str = "vinyals") -> ImageSplits:
    """Split the 1,623 characters, given in their original order.

    | split | train | validation | test |
    |---|---|---|---|
    | "vinyals" | 1028 | 172: five alphabets | 423 |
    | "first-1200" | 1200 | 0 | 423 |
    | "background" | 792 | 172: the same five | 659: the evaluation set |

    "vinyals" is the split of Vinyals et al. 2016 as Snell et al. 2017 published it. It trains on
    characters of the evaluation set, among them some of `one_shot_runs`; "background" does not.

    Raises:
        ValueError: another split, or not these characters.
    """
    if split not in SPLITS:
        raise ValueError(one_of("split", split, SPLITS))
    if len(characters) != CHARACTERS:
        raise ValueError(f"Omniglot has {CHARACTERS} characters, not {len(characters)}")
    held_out = BACKGROUND if split == "background" else VINYALS_TRAIN_AND_VALIDATION
    learned, test = characters.names[:held_out], characters.names[held_out:]
    alphabets = set() if split == "first-1200" else VALIDATION_ALPHABETS
    validation = tuple(name for name in learned if name.split("/")[0] in alphabets)
    train = tuple(name for name in learned if name.split("/")[0] not in alphabets)
    return ClassSplit(train, validation, test).of(characters)
