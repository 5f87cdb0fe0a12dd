"""Nullable strings, as pandas 3 and anndata 0.13 store all text, in stores that an older anndata writes again.

Anndata before 0.13 reads them and refuses to write them, until a setting of it allows that. The setting only turns this error
off: nothing else is written in another way.
"""

from __future__ import annotations

import os

import anndata as ad

_SETTING = "allow_write_nullable_strings"


def allow_nullable_strings() -> None:
    """Let anndata write what it read. A choice of the user in the environment (``ANNDATA_ALLOW_WRITE_NULLABLE_STRINGS``) stays."""
    if f"ANNDATA_{_SETTING.upper()}" not in os.environ and getattr(ad.settings, _SETTING, None) is False:
        setattr(ad.settings, _SETTING, True)
