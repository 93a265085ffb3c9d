"""The Jupyter server extension: what a page of JupyterLab talks to.

It gives the page, below ``{base_url}vmlab/``:

``api/...``
    A REST API over the objects of :mod:`vmlab.lab`: JSON, documented in ``openapi.yaml``.
``consoles/<machine>/vnc`` and ``.../serial``
    WebSockets that carry the bytes of a machine's screen and of its serial line.
``static/...``
    The browser's part.

What changes, whoever changed it (this page, a kernel, the command line, virsh), is pushed on the server's event bus.

Everybody who may use the Jupyter server may use it, nobody else: each route asks Jupyter who it is and Jupyter's
authorizer whether they may (resource ``vmlab``; GET is *read*, a WebSocket *execute*, the rest *write*). Guests belong
to libvirt: neither a kernel nor this server need to live for them to run.

Nothing here is imported before the Jupyter server loads it, and neither libvirt nor a store is touched before a page
asks for them.
"""
