"""The encoder that a classifier begins with: read, checked for what it saw, left beside it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from medray.errors import UsageError
from medray.store import Store
from medray.train.clips_config import RANDOM, ClipsConfig

if TYPE_CHECKING:
    from medray.lineage import Lineage
    from medray.models.encoder import Encoder


def trained(config: ClipsConfig) -> bool:
    """Whether there is an encoder that something was learnt by."""
    return config.encoder not in (None, RANDOM)


def trunk_of(config: ClipsConfig, channels: int) -> Encoder:
    """The encoder to begin with; UsageError where there is none, or it takes other channels."""
    from medray.models.encoder import Encoder, EncoderConfig, load_encoder

    assert config.encoder is not None, "the job has an encoder"
    if config.encoder == RANDOM:
        return Encoder(EncoderConfig(channels, config.width)).seed_weights(config.seed)
    trunk = load_encoder(config.encoder)
    if trunk.config.channels != channels:
        raise UsageError(
            f"--encoder {config.encoder} takes {trunk.config.channels} channel(s), "
            f"--data has {channels}",
            hint="give an encoder that was trained on images of as many channels, or random",
        )
    return trunk


def refuse(
    url: str, held: Collection[str], samples: Collection[str], labels: Collection[str] | None
) -> Lineage:
    """What the encoder saw; DataError where that is a patient held out, or a label of a sample of
    `samples`, which are the set's own, that is not in `labels` (None: all may be).

    Labels of other sets' samples are no part of a fraction of this one's.
    """
    from medray import lineage
    from medray.models.encoder import load_encoder

    # A folder that holds none is told as that, not as one that hides what it saw.
    load_encoder(url)
    if labels is not None:
        saw = lineage.read(url) or lineage.Lineage()
        others = {entry.sample for entry in saw.entries} - set(samples)
        labels = set(labels) | others
    return lineage.refuse(url, patients=held, labels=labels)


def save(store: Store, encoder: Encoder, seed: int) -> None:
    """Leaves the encoder of a classifier's run beside it, for `load_encoder`."""
    from medray.models.encoder import ENCODER, save_encoder

    place = store.child("model").child(ENCODER)
    card = "# Encoder\n\nThe trunk of the classifier in the folder above. Not for diagnosis.\n"
    save_encoder(place, encoder, {"seed": seed}, card)
