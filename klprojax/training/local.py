"""The local projections that networks train by; their home is `klprojax.lifting.local`."""

from ..lifting.local import *  # noqa: F403
