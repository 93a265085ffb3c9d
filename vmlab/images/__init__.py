"""Images: how the built-in guests are made from Debian packages, and how others are imported.

An image is a folder with an ``image.json`` (see `vmlab.images.spec`) and the files that it names. The engine reads only
that. No libvirt here, and no guest is started.
"""

from vmlab.images.builder import build, builtin, is_current
from vmlab.images.cloudinit import CloudInit
from vmlab.images.importer import import_image
from vmlab.images.recipe import Recipe
from vmlab.images.spec import ImageSpec, read

__all__ = ["CloudInit", "ImageSpec", "Recipe", "build", "builtin", "import_image", "is_current", "read"]
