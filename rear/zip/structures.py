"""Numbers of the Zip format: signatures, layouts, identifiers and flags.

Paragraph numbers are those of PKWARE's APPNOTE.TXT 6.3.10. All integers are little-endian (4.4.1.1).
"""

from __future__ import annotations

import struct
from typing import Final

LOCAL_SIGNATURE: Final = b"PK\x03\x04"
CENTRAL_SIGNATURE: Final = b"PK\x01\x02"
END_SIGNATURE: Final = b"PK\x05\x06"
ZIP64_END_SIGNATURE: Final = b"PK\x06\x06"
ZIP64_LOCATOR_SIGNATURE: Final = b"PK\x06\x07"
DESCRIPTOR_SIGNATURE: Final = b"PK\x07\x08"  # 4.3.9.3
LOCAL: Final = struct.Struct("<4s5H3I2H")  # 4.3.7
LOCAL_HEAD: Final = struct.Struct("<4s3H")  # of it: signature, version needed, flags, method
CENTRAL: Final = struct.Struct("<4s6H3I5H2I")  # 4.3.12
END: Final = struct.Struct("<4s4H2IH")  # 4.3.16
ZIP64_END: Final = struct.Struct("<4sQ2H2I4Q")  # 4.3.14
ZIP64_LOCATOR: Final = struct.Struct("<4sIQI")  # 4.3.15
LIMIT_16: Final = 0xFFFF
LIMIT_32: Final = 0xFFFFFFFF
LOCAL_LIMIT_BYTES: Final = LOCAL.size + 2 * LIMIT_16
"""Longest local header."""
CENTRAL_LIMIT_BYTES: Final = CENTRAL.size + 3 * LIMIT_16
"""Longest directory entry."""
DESCRIPTOR_32: Final = struct.Struct("<3I")  # 4.3.9
DESCRIPTOR_64: Final = struct.Struct("<IQQ")
DESCRIPTOR_LAYOUTS: Final = (
    (DESCRIPTOR_SIGNATURE, DESCRIPTOR_64),
    (DESCRIPTOR_SIGNATURE, DESCRIPTOR_32),
    (b"", DESCRIPTOR_64),
    (b"", DESCRIPTOR_32),
)
"""A data descriptor may have a signature or not, and sizes of 64 or 32 bits; nothing in the header tells which."""
DESCRIPTOR_LIMIT_BYTES: Final = len(DESCRIPTOR_SIGNATURE) + DESCRIPTOR_64.size
ZIP64: Final = 0x0001  # 4.5.3
TIMESTAMP: Final = 0x5455  # Info-ZIP extended timestamp, 4.6.1
UNICODE_PATH: Final = 0x7075  # Info-ZIP, 4.6.9
ORIGIN: Final = 0x6572  # "re", free in 4.5.2 and 4.6.1
ORIGIN_NUMBERS: Final = struct.Struct("<QQqI")  # of it, behind version and check: from the cookie to the mode
FLAG_ENCRYPTED: Final = 1 << 0  # 4.4.4
FLAG_DESCRIPTOR: Final = 1 << 3
FLAG_UTF8: Final = 1 << 11
FLAG_MASKED: Final = 1 << 13
EXTRA_HEADER: Final = struct.Struct("<2H")
SIZES: Final = struct.Struct("<3IH")  # from the CRC-32 to the length of the name, in 4.3.7 and 4.3.12
NEWEST_VERSION: Final = 63  # that any feature needs, 4.4.3.2
MADE_BY_UNIX: Final = 3 << 8 | NEWEST_VERSION  # 4.4.2
