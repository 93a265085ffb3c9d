"""The means of drawing: HTML pages, terminal tables, units, views. Nothing here knows what is drawn, or Jupyter.

How each kind of object looks is in :mod:`vmlab.views`, above the objects.
"""
