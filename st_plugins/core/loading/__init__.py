"""Opening model folders: only regular files, only safetensors, and nothing that a folder's JSON asks for."""

from __future__ import annotations
