"""What was wrong with a TLS handshake that failed, in words, and the way out."""

from __future__ import annotations

import ssl
from typing import Final

# Of a certificate that we do not believe: X509_V_ERR_* of OpenSSL.
_UNTRUSTED: Final = {
    9: ("its certificate is not valid yet", "look at the clocks of both machines"),
    10: ("its certificate has expired", "let its administrator renew it"),
    18: ("its certificate is self-signed", "put its authority, or itself, into ca_file"),
    19: ("its certificate comes from an authority that ca_file does not have", "put that authority into ca_file"),
    20: ("its certificate comes from an authority that ca_file does not have", "put that authority into ca_file"),
    21: ("its certificate comes from an authority that ca_file does not have", "let it send its whole chain"),
    23: ("its certificate is revoked", "let its administrator renew it"),
    26: ("its certificate is not made for this purpose", "let its administrator make one for client and server use"),
    62: ("its certificate is for another name", "correct host, or give the name in it as server_name"),
    64: ("its certificate is for another address", "correct host, or give the name in it as server_name"),
}
# What OpenSSL says of a handshake that failed, and of what the peer said last (the alerts of RFC 8446 section 6).
_REASONS: Final = {
    "WRONG_VERSION_NUMBER": ("it does not speak TLS", "let both sides speak TLS, or neither"),
    "HTTP_REQUEST": ("it speaks HTTP", "look at who connects"),
    "UNSUPPORTED_PROTOCOL": ("it speaks TLS older than 1.2", "let it speak TLS 1.2 or 1.3"),
    "TLSV1_ALERT_PROTOCOL_VERSION": ("it does not speak TLS 1.2 or newer", "let it speak TLS 1.2 or 1.3"),
    "NO_SHARED_CIPHER": ("it has no forward-secret AEAD suite", "let it offer ECDHE with AES-GCM"),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        "it accepts none of what we offer, or wants a certificate of ours",
        "give certificate_file and key_file, or let it offer ECDHE with AES-GCM",
    ),
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": ("it shows no certificate", "let it show one of an authority in ca_file"),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        "it wants a certificate of ours",
        "give certificate_file and key_file of a pair that it trusts",
    ),
    "TLSV1_ALERT_UNKNOWN_CA": ("it does not know the authority of our certificate", "enter our authority there"),
    "SSLV3_ALERT_BAD_CERTIFICATE": ("it does not take our certificate", "look into its log"),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": ("it does not take our certificate", "look into its log"),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": ("it says that our certificate has expired", "renew our certificate"),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": ("it says that our certificate is revoked", "renew our certificate"),
}


def explain(exc: OSError) -> tuple[str, str]:
    """What was wrong with a handshake, and the way out; names of certificates are left out."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _UNTRUSTED.get(exc.verify_code, (f"its certificate is not trusted: {exc.verify_message}", "renew it"))
    if isinstance(exc, TimeoutError):
        return "it did not end the TLS handshake in time", "look whether it speaks TLS on this port"
    if isinstance(exc, ssl.SSLEOFError | ConnectionError):
        return "it hung up in the TLS handshake", "look whether it speaks TLS on this port, and into its log"
    reason = getattr(exc, "reason", "") or ""
    return _REASONS.get(reason, (f"the TLS handshake failed ({reason or type(exc).__name__})", "look into its log"))
