"""The pictures of ``tools/visualize.py``, a module each, and what those of networks share."""
