"""How the objects look: in a notebook (HTML), in a terminal (rich), for programs (JSON). Nothing here knows Jupyter.

:mod:`vmlab.views.dispatch` chooses by class; it loads all objects, so who shows a view at hand does without it.
"""
