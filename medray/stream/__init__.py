"""Stage 2: shards to batches on this rank."""

from medray.stream.loader import Stream
from medray.stream.roster import Fact, Roster
from medray.stream.sets import Source

__all__ = ["Fact", "Roster", "Source", "Stream"]
