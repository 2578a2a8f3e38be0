//! What a peer's certificates have in common from one to the next: names and use, without key,
//! serial number and dates.
//!
//! It comes from a request, or for a renewal from the certificate before.
//! Invariant: a renewal loses nothing. A certificate with anything that a template has no place for
//! is refused, not issued again without it.

use std::net::IpAddr;

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::authority::{Request, Role};
use crate::{Error, Result};

/// Names and use of a certificate.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) common_name: Option<String>,
    pub(crate) alternative_names: Vec<SanType>,
    /// What the peer may do with it: serve, dial or both.
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Template {
    pub(crate) fn of_request(request: &Request) -> Result<Self> {
        let text = |text: &str| text.try_into().map_err(Error::crypto("encode a name"));
        let mut names = match request.role() {
            Role::Client => match request.name().as_host_name() {
                Some(host) => vec![SanType::DnsName(text(host)?)],
                None => vec![],
            },
            Role::Server(names) => names
                .iter()
                .map(|name| match name {
                    ServerName::IpAddress(address) => {
                        Ok(SanType::IpAddress(IpAddr::from(*address)))
                    }
                    other => Ok(SanType::DnsName(text(&other.to_str())?)),
                })
                .collect::<Result<_>>()?,
        };
        if let Some(uri) = request.san_uri() {
            names.push(SanType::URI(text(uri.as_str())?));
        }
        Ok(Self {
            common_name: Some(request.name().to_string()),
            alternative_names: names,
            usages: vec![match request.role() {
                Role::Client => ExtendedKeyUsagePurpose::ClientAuth,
                Role::Server(_) => ExtendedKeyUsagePurpose::ServerAuth,
            }],
        })
    }

    /// That of a certificate that is there.
    ///
    /// # Errors
    /// A text that says what a new certificate would lose, for the caller to put beside the file's
    /// name.
    pub(crate) fn of_certificate(
        certificate: &CertificateDer<'_>,
    ) -> std::result::Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|_| "it is no valid X.509 certificate".to_owned())?;
        let lost = |what: &str| {
            format!("a renewal would lose {what}; renew it with the tool that made it")
        };
        if parsed.is_ca() {
            return Err("it is the certificate of an authority, which is never renewed".to_owned());
        }
        let subject: Vec<_> = parsed.subject().iter_attributes().collect();
        let common_name = match (
            subject.as_slice(),
            parsed.subject().iter_common_name().next(),
        ) {
            ([], _) => None,
            ([_], Some(name)) => {
                let name = name.as_str().map_err(|_| lost("its common name"))?;
                Some(name.to_owned())
            }
            _ => return Err(lost("what is in its subject beside the common name")),
        };
        let mut template = Self {
            common_name,
            alternative_names: vec![],
            usages: vec![],
        };
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        let name = alternative_name(name)
                            .ok_or_else(|| lost(&format!("the alternative name {name}")))?;
                        template.alternative_names.push(name);
                    }
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    let more = usage.any
                        || usage.code_signing
                        || usage.email_protection
                        || usage.time_stamping
                        || usage.ocsp_signing
                        || !usage.other.is_empty();
                    if more {
                        return Err(lost("a use that is neither to serve nor to dial"));
                    }
                    if usage.server_auth {
                        template.usages.push(ExtendedKeyUsagePurpose::ServerAuth);
                    }
                    if usage.client_auth {
                        template.usages.push(ExtendedKeyUsagePurpose::ClientAuth);
                    }
                }
                // Issued anew with each certificate.
                ParsedExtension::BasicConstraints(_)
                | ParsedExtension::KeyUsage(_)
                | ParsedExtension::SubjectKeyIdentifier(_)
                | ParsedExtension::AuthorityKeyIdentifier(_) => {}
                _ => return Err(lost(&format!("its extension {}", extension.oid))),
            }
        }
        if template.usages.is_empty() {
            return Err("it does not say whether its peer serves or dials; \
                        issue one that does with `issue NAME --force`"
                .to_owned());
        }
        Ok(template)
    }

    /// Whether the peer may serve.
    pub(crate) fn is_server(&self) -> bool {
        self.usages.contains(&ExtendedKeyUsagePurpose::ServerAuth)
    }
}

fn alternative_name(name: &GeneralName<'_>) -> Option<SanType> {
    Some(match name {
        GeneralName::DNSName(name) => SanType::DnsName((*name).try_into().ok()?),
        GeneralName::URI(uri) => SanType::URI((*uri).try_into().ok()?),
        GeneralName::RFC822Name(name) => SanType::Rfc822Name((*name).try_into().ok()?),
        GeneralName::IPAddress(bytes) => SanType::IpAddress(address(bytes)?),
        _ => return None,
    })
}

/// An address as a certificate has it: 4 or 16 bytes.
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(bytes.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}
