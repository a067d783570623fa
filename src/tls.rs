//! Certificates and rustls settings.
