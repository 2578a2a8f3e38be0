//! By which name a server knows the bearer of a certificate.
//!
//! The server decides by the same rule: `Principal` in storage-server. The name goes into logs and
//! tables, before the eyes of those who read them, so what does not show is no name.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The longest principal in bytes, `cert:` included.
const PRINCIPAL_BYTES_MAX: usize = 256;

/// The principal of a certificate, `cert:NAME`: of what is there the first of SAN URI, SAN DNS name
/// and common name.
///
/// # Errors
/// A text that says why a server refuses the certificate as nobody's.
pub(crate) fn principal(
    certificate: &CertificateDer<'_>,
) -> std::result::Result<String, &'static str> {
    let unreadable = "its name cannot be read";
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unreadable)?;
    let names = match parsed.subject_alternative_name() {
        Ok(extension) => extension.map_or(&[][..], |extension| &extension.value.general_names),
        Err(_) => return Err(unreadable),
    };
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let dns = names.iter().find_map(|name| match name {
        GeneralName::DNSName(dns) => Some(*dns),
        _ => None,
    });
    let name = match uri.or(dns) {
        Some(name) => name,
        None => parsed
            .subject()
            .iter_common_name()
            .next()
            .ok_or("it has neither a URI nor a DNS name nor a common name")?
            .as_str()
            .map_err(|_| unreadable)?,
    };
    let principal = format!("cert:{name}");
    let shows = !name.chars().any(|c| c.is_control() || is_unseen(c));
    if name.is_empty() || !shows || principal.len() > PRINCIPAL_BYTES_MAX {
        return Err(
            "its name is empty, has control characters or ones that do not show, \
             or is longer than 256 bytes",
        );
    }
    Ok(principal)
}

/// A format character or a separator of lines (Unicode: the categories Cf, Zl and Zp), which may turn
/// or part what is around it; or one that is shown by nothing (Default_Ignorable_Code_Point, U+2800).
pub(crate) fn is_unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
        | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// For the eyes of people: what would move a terminal's cursor, or does not show, is escaped.
pub(crate) fn visible(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_unseen(c) {
            safe.extend(c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}
