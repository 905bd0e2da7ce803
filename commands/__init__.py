"""The commands of ``dissect.py``: where networks and data meet the dissection."""
