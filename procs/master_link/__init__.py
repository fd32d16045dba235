"""The link to the master. TLS 1.3 alone: gRPC reads this when it is first imported, and an older
handshake finds no cipher that both sides have."""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"  # of TLS 1.2, and never usable
