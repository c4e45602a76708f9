"""Names of nuclei that stay the same from run to run."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_UUID_TEXT = 36
# where the 32 hexadecimal digits stand in 8-4-4-4-12
_DIGITS = np.array([i for i in range(_UUID_TEXT) if i not in (8, 13, 18, 23)])


def nucleus_uuids(
    fingerprint: str, anchor_x_mp: npt.NDArray[np.int32], anchor_y_mp: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    """Return UUIDs (version 8, RFC 9562) as text, (n, 36) uint8 ASCII: a function of slide and anchor alone."""
    seeds = np.frombuffer(hashlib.blake2b(fingerprint.encode(), digest_size=16).digest(), "<u8")
    anchor = (anchor_y_mp.astype(np.uint64) << np.uint64(32)) | anchor_x_mp.astype(np.uint64)
    halves = np.stack([_mix(anchor ^ seed) for seed in seeds], axis=1)
    octets = halves.astype(">u8").view(np.uint8).reshape(len(anchor), 16)
    octets[:, 6] = (octets[:, 6] & 0x0F) | 0x80
    octets[:, 8] = (octets[:, 8] & 0x3F) | 0x80
    text = np.full((len(anchor), _UUID_TEXT), ord("-"), np.uint8)
    text[:, _DIGITS] = _HEX[np.stack([octets >> 4, octets & 15], axis=2).reshape(len(anchor), 32)]
    return text


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64 bits one to one (SplitMix64's finaliser; Steele, Lea and Flood, OOPSLA 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
