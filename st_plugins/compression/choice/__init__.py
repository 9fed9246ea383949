"""How the smaller vectors are chosen: what each way keeps, on texts that it was not fitted on."""

from __future__ import annotations
