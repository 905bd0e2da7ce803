"""A small open_clip model of the embedded world: it knows the words of :data:`models.shapes.CONCEPTS`."""

from pathlib import Path

#: What ``local-dir:`` of open_clip, and ``dissect.py label --clip``, load.
FOLDER = Path(__file__).parent
