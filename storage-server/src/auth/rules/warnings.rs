//! Rules and roles that give nothing, or less than they seem to.

use std::fmt;

use super::overlap::{Filed, Overlap};
use super::set::{Entry, MergedRole};
use super::subject::matches_any_principal;
use super::{KeyspaceKind, Origin, Permission, RuleSet, SECRETS, SYSTEM};
use crate::auth::text::{escaped, quoted};

/// The longest reason why a rule cannot be read that is told, in characters.
const REASON_CHARS_MAX: usize = 400;

/// What is allowed of principals, in warnings.
const PRINCIPALS: &str =
    "principals begin with \"cert:\" or \"user:\" and a name behind it, or are \"anonymous\"";

/// Something about a rule or a role that its author can hardly have meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where the rule or the role comes from.
    pub origin: Origin,
    /// What it is about, and what is odd: one sentence.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is odd about a rule.
#[derive(Default)]
struct Findings {
    texts: Vec<String>,
    /// It gives nobody anything.
    is_void: bool,
}

impl Findings {
    fn void(&mut self, text: String) {
        self.is_void = true;
        self.texts.push(text);
    }
}

impl RuleSet {
    /// The rules, in their order, that can never match, give nothing, less than they say, or nothing that another one
    /// does not give; then those that cannot be read; then the roles that give nobody anything.
    ///
    /// Not for each request: ten thousand rules take some 50 ms. Where comparing them would take more than 2 s (many
    /// keyspaces that begin with `*`, long prefixes of many lengths), not all that are covered by another one are found.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let findings: Vec<Findings> = self.rules.iter().map(|rule| self.findings(rule)).collect();
        let of_use = self.rules.iter().zip(&findings).enumerate();
        let of_use = of_use.filter(|(_, (_, findings))| !findings.is_void);
        let filed = Filed::new(of_use.map(|(place, (entry, _))| (place, &entry.rule)));
        let mut warnings = Vec::new();
        for (place, (entry, findings)) in self.rules.iter().zip(findings).enumerate() {
            let overlap = filed.overlap(place);
            let overlap = overlap.and_then(|overlap| self.overlap_text(overlap));
            warnings.extend(findings.texts.into_iter().chain(overlap).map(|text| {
                let text = format!("{}: {text}", entry.origin);
                Warning::new(&entry.origin, text)
            }));
        }
        warnings.extend(self.unreadable.iter().map(|rule| {
            let reason = escaped(&rule.reason, REASON_CHARS_MAX);
            let text = format!(
                "{}: it cannot be read and gives nothing: {reason}",
                rule.origin
            );
            Warning::new(&rule.origin, text)
        }));
        warnings.extend(self.roles.iter().flat_map(role_warnings));
        warnings
    }

    fn findings(&self, entry: &Entry) -> Findings {
        let mut findings = Findings::default();
        self.check_principal(entry, &mut findings);
        check_keyspace(entry, &mut findings);
        findings
    }

    fn check_principal(&self, entry: &Entry, findings: &mut Findings) {
        if self.is_for_anybody(entry) {
            return;
        }
        let principal = entry.rule.principal();
        findings.void(match (principal.role(), entry.role) {
            (None, _) => format!(
                "principal {} matches nobody: {PRINCIPALS}; roles begin with \"role:\"",
                quoted(&principal.to_string())
            ),
            (Some(name), None) => format!("there is no role \"{name}\", so it gives nothing"),
            (Some(name), Some(_)) => format!("nobody has role \"{name}\", so it gives nothing"),
        });
    }

    fn overlap_text(&self, overlap: Overlap) -> Option<String> {
        let (place, text) = match overlap {
            Overlap::Same(place) => (place, "it gives the same as"),
            Overlap::Wider(place) => (place, "it gives nothing beyond"),
        };
        let other = self.rules.get(place)?;
        Some(format!("{text} {}: {}", other.origin, other.rule))
    }
}

fn check_keyspace(entry: &Entry, findings: &mut Findings) {
    let keyspace = entry.rule.keyspace();
    let shown = quoted(keyspace.as_str());
    if !keyspace.matches_any() {
        findings.void(format!(
            "keyspace {shown} matches none: their names are of the form [a-z0-9][a-z0-9._-]{{0,62}}"
        ));
        return;
    }
    if keyspace.as_str() == SECRETS {
        findings.void(format!("{SECRETS} is open to nobody, so it gives nothing"));
        return;
    }
    if keyspace.means_secrets() {
        findings.texts.push(format!(
            "keyspace {shown} does not open {SECRETS}, which is open to nobody"
        ));
    }
    check_admin(entry, findings);
}

/// `admin` is needed for the server's own keyspaces, and counts without a prefix only.
fn check_admin(entry: &Entry, findings: &mut Findings) {
    let (rule, keyspace) = (&entry.rule, entry.rule.keyspace());
    let prefix = quoted(rule.prefix());
    let says_admin = rule.allow().contains(Permission::Admin);
    if says_admin && !rule.gives_admin() {
        let text = format!("admin does not count with prefix {prefix}, but for all keys only");
        match keyspace.is_system_only() || rule.given(KeyspaceKind::Ordinary).is_empty() {
            true => findings.void(format!("{text}, so it gives nothing")),
            false => findings.texts.push(text),
        }
    }
    if !says_admin && keyspace.is_system_only() {
        findings.void(format!(
            "{} without admin gives nothing in the server's own keyspaces",
            rule.allow()
        ));
    } else if !rule.gives_admin() && !keyspace.is_system_only() && keyspace.reaches_system() {
        findings.texts.push(format!(
            "keyspace {} matches the server's own ({SYSTEM}) too, where nothing is given without admin on all keys",
            quoted(keyspace.as_str())
        ));
    }
}

fn role_warnings(role: &MergedRole) -> Vec<Warning> {
    let name = match &role.origin {
        Origin::Config(_) => format!("role \"{}\" of the configuration", role.name),
        Origin::Stored(_) => format!("stored role \"{}\"", role.name),
    };
    let mut texts = Vec::new();
    if role.members.is_empty() {
        texts.push("it has no members".to_owned());
    }
    let members = role.members.iter();
    texts.extend(
        members
            .filter(|member| !matches_any_principal(member))
            .map(|member| {
                format!(
                    "member {} matches nobody: {PRINCIPALS}",
                    quoted(member.as_str())
                )
            }),
    );
    let warning = |text| Warning::new(&role.origin, format!("{name}: {text}"));
    texts.into_iter().map(warning).collect()
}

impl Warning {
    fn new(origin: &Origin, text: String) -> Self {
        Self {
            origin: origin.clone(),
            text,
        }
    }
}
